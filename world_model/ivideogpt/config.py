"""How iVideoGPT learns: the settings of its learner, and how often each part is due online."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from torch import Tensor

from world_model.api import is_due


class TokenClips(NamedTuple):
    """`Clips` with frames already tokenized, where the tokenizer does not change."""

    tokens: Tensor  # int64 (B, L)
    actions: Tensor  # float (B, T, A)
    rewards: Tensor  # float (B, T)


@dataclass(frozen=True)
class Rhythm:
    """How often each part learns online, in frames of the environment."""

    transformer_every_frames: int
    tokenizer_every_frames: int
    action_repeat: int  # frames of a decision

    def due(self, frame: int) -> tuple[bool, bool]:
        """Whether transformer and tokenizer are due with the decision that ended at `frame`."""
        return (
            is_due(frame, self.transformer_every_frames, self.action_repeat),
            is_due(frame, self.tokenizer_every_frames, self.action_repeat),
        )


@dataclass(frozen=True)
class LearnerConfig:
    batch_size: Annotated[int, "[1, inf)"]  # clips of a transformer update
    segment_length: Annotated[int, "[2, inf)"]  # T, frames of such a clip
    tokenizer_batch_size: Annotated[int, "[1, inf)"]  # clips of a tokenizer update
    # frames among which such a clip's future frames are drawn; segment_length as officially
    tokenizer_span: Annotated[int, "[2, inf)"]
    tokenizer_lr: Annotated[float, "(0, inf)"]
    transformer_lr: Annotated[float, "(0, inf)"]
    warmup_updates: Annotated[int, "[0, inf)"]  # both rates rise linearly over this many updates
    decay_updates: Annotated[int, "[0, inf)"]  # and fall until this many; 0 keeps them, as officially online
    decay: Literal["linear", "cosine"]  # to a tenth, from the first update on; or to nothing, after the warm-up
    weight_decay: Annotated[float, "[0, inf)"]
    max_grad_norm: Annotated[float, "(0, inf)"]
    reward_weight: Annotated[float, "[0, inf)"]
    # largest share of the input tokens replaced at random, in every other clip; 0 as officially
    token_noise: Annotated[float, "[0, 1]"]
    tokenizer_dropout: bool  # while the tokenizer learns; officially only in pre-training
    # F, future frames of a clip that the tokenizer reconstructs in one update
    sampled_future_frames: Annotated[int, "[1, inf)"]
    embed_codes: bool  # a transformer that has learned nothing begins with the tokenizer's codes; false as officially
    freeze_codebooks: bool | None  # None: where the model starts from pre-trained weights, as officially
    # tokenizer updates as a plain autoencoder before codes are used; 0 as officially
    quantize_after: Annotated[int, "[0, inf)"]
    # updates after that during which unused codes are restarted; 0 never, as officially
    revive_codes_until: Annotated[int, "[0, inf)"]
    mse_weight: Annotated[float, "[0, inf)"]  # of squared error beside L1 in the reconstruction loss; 0 as officially
    # of the same error averaged over the pixels that move alone; 0 as officially
    motion_weight: Annotated[float, "[0, inf)"]
    perceptual_weights: str  # folder with LPIPS-VGG weights, or "none"
    precision: Literal["auto", "fp32", "bf16"]  # "auto" (bf16 where the device computes in it), "fp32" or "bf16"

    def __post_init__(self) -> None:
        if self.token_noise and self.batch_size == 1:
            raise ValueError("token_noise needs batch_size=2 or more: heads learn from the clips that it leaves clean")

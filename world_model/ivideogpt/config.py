"""How iVideoGPT learns: the settings of its learner, and how often each part is due online."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from torch import Tensor

from world_model.api import is_due
from world_model.schema import Folder


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
    """What each key does stands beside its value in configs/config.yaml. T is `segment_length`, F is
    `sampled_future_frames`.
    """

    batch_size: Annotated[int, "[1, inf)"]
    segment_length: Annotated[int, "[2, inf)"]
    tokenizer_batch_size: Annotated[int, "[1, inf)"]
    tokenizer_span: Annotated[int, "[2, inf)"]
    tokenizer_lr: Annotated[float, "(0, inf)"]
    transformer_lr: Annotated[float, "(0, inf)"]
    warmup_updates: Annotated[int, "[0, inf)"]
    decay_updates: Annotated[int, "[0, inf)"]
    decay: Literal["linear", "cosine"]
    weight_decay: Annotated[float, "[0, inf)"]
    max_grad_norm: Annotated[float, "(0, inf)"]
    reward_weight: Annotated[float, "[0, inf)"]
    token_noise: Annotated[float, "[0, 1]"]
    tokenizer_dropout: bool
    sampled_future_frames: Annotated[int, "[1, inf)"]
    embed_codes: bool
    freeze_codebooks: bool | None
    quantize_after: Annotated[int, "[0, inf)"]
    revive_codes_until: Annotated[int, "[0, inf)"]
    mse_weight: Annotated[float, "[0, inf)"]
    motion_weight: Annotated[float, "[0, inf)"]
    perceptual_weights: Folder
    precision: Literal["auto", "fp32", "bf16"]

    def __post_init__(self) -> None:
        if self.token_noise and self.batch_size == 1:
            raise ValueError("token_noise needs batch_size=2 or more: heads learn from the clips that it leaves clean")

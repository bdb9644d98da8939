"""The network of iVideoGPT: tokenizer, transformer, and what ties actions and rewards to them.

An action enters as a linear embedding added to the slot token that opens the frame it leads to; the reward it earned
is read from the hidden state of that frame's last token. So future frame t is conditioned on actions[:, t-1] and
predicts rewards[:, t-1]. Source: iVideoGPT (arXiv 2405.15223), section 3.2.

Letters: B batch, T frames, K context frames, n tokens a future frame, A action, L tokens, D width.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.heads import HEADS, Head
from world_model.ivideogpt.layout import IGNORE
from world_model.ivideogpt.tokenizer import CompressiveTokenizer, TokenizerConfig
from world_model.ivideogpt.transformer import Transformer, TransformerConfig

INIT_SHARED_VARIANCE = 0.9  # share of a new transformer's embedding variance that tokens with like codes have in common


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """No dropout while the body runs."""
    training = module.training
    if training:
        module.eval()
    try:
        yield
    finally:
        if training:
            module.train()


class Prediction(NamedTuple):
    loss: Tensor  # (), ce_loss and the losses of the heads whose targets are known
    ce_loss: Tensor  # (), over dynamics tokens and the slots between them
    head_losses: dict[str, Tensor]  # () each, of the heads whose targets are known
    raw: dict[str, Tensor]  # (B, T-K) each, what the heads give; [:, i] belongs to the targets' [:, K-1+i]
    logits: Tensor  # (B, (n+1)(T-K), vocabulary), from the first sdf to the last token

    @property
    def reward_loss(self) -> Tensor | None:
        """(), squared error in symlog space; None without rewards."""
        return self.head_losses.get("reward")

    @property
    def reward_pred(self) -> Tensor | None:
        """(B, T-K), symlog space; None without a reward head."""
        return self.raw.get("reward")


class VideoGPT(nn.Module):
    """Predicts frames as tokens, and what actions earn; `world_model/ivideogpt/model.py` adds dreams and checkpoints.

    Args:
        tokenizer, transformer: sizes.
        action_dim: A; 0 makes the model action-free.
        heads: what is read from a frame's last token, names in `world_model.heads.HEADS`.
    """

    tokenizer_class = CompressiveTokenizer  # world_model/ivideogpt/per_frame.py has another

    def __init__(
        self,
        tokenizer: TokenizerConfig,
        transformer: TransformerConfig,
        action_dim: int = 0,
        heads: Collection[str] = ("reward",),
    ):
        super().__init__()
        self.tokenizer = self.tokenizer_class(tokenizer)
        self.layout = self.tokenizer.layout
        self.transformer = Transformer(transformer, self.layout.vocabulary)
        self.action_dim = action_dim
        self.action_linear = nn.Linear(action_dim, transformer.hidden_size) if action_dim else None
        # At the start actions change nothing, so an action-free model stays as it was.
        if self.action_linear is not None:
            nn.init.zeros_(self.action_linear.weight)
            nn.init.zeros_(self.action_linear.bias)
        self.heads = nn.ModuleDict({name: HEADS[name](transformer.hidden_size) for name in heads})

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """What helps a transformer that has learned nothing, once the tokenizer has (docs/pretraining.md).

        Tokens that look alike are read and written alike: their embeddings become projections of their codes, beside a
        part of their own. And actions are heard from the first update on.
        """
        embedding, first = self.transformer.embedding.weight, 0
        for codebook in (self.tokenizer.quantize, self.tokenizer.dynamics_quantize):
            codes = codebook.embedding.weight
            rows = embedding[first : first + len(codes)]
            first += len(codes)
            mean = rows.mean(0)
            own = rows - mean
            into = torch.randn(codes.shape[1], rows.shape[1], generator=generator, device=codes.device)
            alike = (codes - codes.mean(0)) / codes.std(0).clamp_min(1e-6) @ into
            alike *= own.std() / alike.std()
            rows.copy_(mean + INIT_SHARED_VARIANCE**0.5 * alike + (1 - INIT_SHARED_VARIANCE) ** 0.5 * own)
        self.transformer.head.weight.copy_(embedding)
        if self.action_linear is not None:
            self.action_linear.weight.normal_(std=float(own.std()), generator=generator)

    @property
    def device(self) -> torch.device:
        return self.transformer.embedding.weight.device

    def embed(self, tokens: Tensor, actions: Tensor | None = None) -> Tensor:
        """Tokens (B, L) and the actions (B, F, A) that lead to the F future frames -> (B, L, D)."""
        x = self.transformer.embedding(tokens)
        if actions is not None and self.action_linear is not None:
            slots = self.layout.slots(actions.shape[1])
            x[:, slots] = x[:, slots] + self.action_linear(actions)  # x is fresh from the lookup: safe to write
        return x

    def read_heads(self, hidden: Tensor) -> dict[str, Tensor]:
        """Hidden states (..., D) of last tokens -> what each head says of the decision, (...), environment units."""
        return {name: head.value(head(hidden)) for name, head in self._heads()}

    def _heads(self) -> Iterator[tuple[str, Head]]:
        return ((name, cast(Head, head)) for name, head in self.heads.items())

    def predict(
        self,
        tokens: Tensor,
        labels: Tensor,
        actions: Tensor | None = None,
        targets: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Prediction:
        """One pass over a token sequence with its losses.

        Args:
            tokens, labels: int64 (B, L), from `tokenizer.tokenize`.
            actions: float (B, T, A); the last one, which leads out of the clip, is not used.
            targets: of the heads by their names, float (B, T) in environment units; likewise.
        """
        layout = self.layout
        future = layout.future_frames(tokens.shape[1])
        known = slice(layout.context_length - 1, layout.context_length - 1 + future)  # steps that lead to future frames
        if actions is not None:
            actions = actions[:, known]
        hidden = self.transformer(self.embed(tokens, actions))
        logits = self.transformer.head(hidden[:, layout.prefix :])  # (B, (n+1) F, vocabulary)
        following = labels[:, layout.prefix + 1 :]
        ce_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), following.flatten(), ignore_index=IGNORE)
        last = hidden[:, layout.last_tokens(future)]
        raw = {name: head(last) for name, head in self._heads()}
        losses = {
            name: head.loss(raw[name], targets[name][:, known]) for name, head in self._heads() if name in targets
        }
        return Prediction(sum(losses.values(), ce_loss), ce_loss, losses, raw, logits)

    def forward(self, frames: Tensor, actions: Tensor | None = None, rewards: Tensor | None = None) -> Prediction:
        """Tokenize frames (without gradient) and predict them.

        Args:
            frames: float (B, T, 3, H, W) in [0, 1]; the first K are context.
            actions: float (B, T, A); actions[:, i] is taken at frame i and leads to frame i+1.
            rewards: float (B, T), environment units; rewards[:, i] is what actions[:, i] earned.
        """
        return self.predict(*self.tokens(frames), actions, {} if rewards is None else {"reward": rewards})

    @torch.no_grad()
    def tokens(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `tokenizer.tokenize`, in evaluation mode."""
        with evaluation_mode(self.tokenizer):
            return self.tokenizer.tokenize(frames)

"""iVideoGPT: the tokenizer, the transformer, and what ties actions and rewards to them.

An action enters as a linear embedding added to the slot token that opens the frame it leads to; the reward it earned
is read from the hidden state of that frame's last token. So future frame t is conditioned on actions[:, t-1] and
predicts rewards[:, t-1]. Source: iVideoGPT (arXiv 2405.15223), section 3.2.

Letters: B batch, T frames, K context frames, n tokens a future frame, A action, L tokens, D width.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model import weights
from world_model.imagine import Dream, imagine
from world_model.layout import IGNORE
from world_model.tokenizer import CompressiveTokenizer, TokenizerConfig
from world_model.transformer import Transformer, TransformerConfig

ALIKE = 0.9  # of the variance of a new transformer's embeddings: what tokens with like codes have in common


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): rewards of any size on one scale (Hafner et al., arXiv 2301.04104)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class Prediction(NamedTuple):
    loss: Tensor  # (), ce_loss and, where rewards are known, reward_loss
    ce_loss: Tensor  # (), over dynamics tokens and the slots between them
    reward_loss: Tensor | None  # (), squared error in symlog space; None without rewards
    reward_pred: Tensor | None  # (B, T-K), symlog space; [:, i] belongs to rewards[:, K-1+i]
    logits: Tensor  # (B, (n+1)(T-K), vocabulary), from the first sdf to the last token


class IVideoGPT(nn.Module):
    """An interactive world model over frames, actions and rewards.

    Args:
        tokenizer, transformer: sizes.
        action_dim: A; 0 makes the model action-free.
        reward_head: whether rewards are predicted.
    """

    tokenizer_class = CompressiveTokenizer  # world_model/per_frame.py has another

    def __init__(
        self,
        tokenizer: TokenizerConfig,
        transformer: TransformerConfig,
        action_dim: int = 0,
        reward_head: bool = True,
    ):
        super().__init__()
        self.tokenizer = self.tokenizer_class(tokenizer)
        self.layout = self.tokenizer.layout
        self.transformer = Transformer(transformer, self.layout.vocabulary)
        self.action_dim = action_dim
        self.action_linear = nn.Linear(action_dim, transformer.hidden_size) if action_dim else None
        self.reward_linear = nn.Linear(transformer.hidden_size, 1) if reward_head else None
        # At the start actions change nothing, so an action-free model stays as it was; and the error of rewards, large
        # while they are unknown, does not drown what the tokens have to teach.
        for head in (self.action_linear, self.reward_linear):
            if head is not None:
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

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
            rows.copy_(mean + ALIKE**0.5 * alike + (1 - ALIKE) ** 0.5 * own)
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

    def read_reward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) of last tokens -> rewards (...) in symlog space, always in float32."""
        assert self.reward_linear is not None, "this model has no reward head"
        with torch.autocast(hidden.device.type, enabled=False):
            return self.reward_linear(hidden.float()).squeeze(-1)

    def reward(self, hidden: Tensor) -> Tensor:
        """As `read_reward`, in environment units."""
        return symexp(self.read_reward(hidden))

    def predict(
        self, tokens: Tensor, labels: Tensor, actions: Tensor | None = None, rewards: Tensor | None = None
    ) -> Prediction:
        """One pass over a token sequence with its losses.

        Args:
            tokens, labels: int64 (B, L), from `tokenizer.tokenize`.
            actions: float (B, T, A); the last one, which leads out of the clip, is not used.
            rewards: float (B, T) in environment units; likewise.
        """
        layout = self.layout
        future = layout.future_frames(tokens.shape[1])
        known = slice(layout.context_length - 1, layout.context_length - 1 + future)  # steps that lead to future frames
        if actions is not None:
            actions = actions[:, known]
        hidden = self.transformer(self.embed(tokens, actions))
        logits = self.transformer.head(hidden[:, layout.prefix :])  # (B, (n+1) F, vocabulary)
        targets = labels[:, layout.prefix + 1 :]
        ce_loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)
        loss, reward_pred, reward_loss = ce_loss, None, None
        if self.reward_linear is not None:
            reward_pred = self.read_reward(hidden[:, layout.last_tokens(future)])
            if rewards is not None:
                reward_loss = F.mse_loss(reward_pred, symlog(rewards[:, known].float()))
                loss = ce_loss + reward_loss
        return Prediction(loss, ce_loss, reward_loss, reward_pred, logits)

    def forward(self, frames: Tensor, actions: Tensor | None = None, rewards: Tensor | None = None) -> Prediction:
        """Tokenize frames (without gradient) and predict them.

        Args:
            frames: float (B, T, 3, H, W) in [0, 1]; the first K are context.
            actions: float (B, T, A); actions[:, i] is taken at frame i and leads to frame i+1.
            rewards: float (B, T), environment units; rewards[:, i] is what actions[:, i] earned.
        """
        return self.predict(*self.tokens(frames), actions, rewards)

    @torch.no_grad()
    def tokens(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `tokenizer.tokenize`, in evaluation mode."""
        training, _ = self.tokenizer.training, self.tokenizer.eval()
        tokens, labels = self.tokenizer.tokenize(frames)
        self.tokenizer.train(training)
        return tokens, labels

    def imagine(
        self,
        context: Tensor,
        policy: Tensor | Callable[[Tensor], Tensor],
        horizon: int,
        temperature: float = 1.0,
        top_k: int = 100,
        generator: torch.Generator | None = None,
    ) -> Dream:
        """Dream `horizon` frames ahead; see `world_model.imagine.imagine`."""
        return imagine(self, context, policy, horizon, temperature, top_k, generator)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        action_dim: int = 4,
        context_length: int | None = 2,
        attention_dropout: float | None = None,
        new_actions: bool = False,
        reward_head: bool = True,
    ) -> "IVideoGPT":
        """Load a checkpoint in the official layout (`tokenizer/`, `transformer/`).

        Args:
            action_dim: A; 0 for an action-free model. A checkpoint without action weights starts them at zero.
            context_length: K, at most the checkpoint's; None takes the checkpoint's.
            attention_dropout: of the transformer while training; None keeps the checkpoint's.
            new_actions: start the action weights at zero where the checkpoint's are for another `action_dim`.
            reward_head: whether rewards are predicted; a checkpoint without the head starts it at zero.
        Raises:
            world_model.weights.WeightsError: files are missing, damaged or of other sizes.
        """
        tokenizer, transformer = weights.read_configs(folder, context_length)
        if attention_dropout is not None:
            transformer = replace(transformer, attention_dropout=attention_dropout)
        model = cls(tokenizer, transformer, action_dim, reward_head)
        weights.load(model, folder, new_actions)
        return model

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write a checkpoint in the official layout; see `world_model.weights.save`."""
        weights.save(self, folder, dtype)

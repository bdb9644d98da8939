"""What the parts of the world model are trained on: `loss, metrics, ... = module(batch)`.

Each loss is one forward pass of one module, which is what `parallel.py` can spread over processes.
Source: iVideoGPT (arXiv 2405.15223), sections 3 and 4.3.

Letters: B clips, T frames, K context frames, F sampled future frames, L tokens, A action.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from world_model.api import Clips
from world_model.ivideogpt import parallel
from world_model.ivideogpt.config import TokenClips
from world_model.ivideogpt.network import VideoGPT
from world_model.ivideogpt.tokenizer import CompressiveTokenizer, Reconstruction
from world_model.metrics import moved
from world_model.metrics.perceptual import LPIPS

# (images (P, 3, H, W), the loss to weigh against, a weight of the last layer) -> a term of the loss
Judge = Callable[[Tensor, Tensor, Tensor], Tensor]


class TokenizerLoss(nn.Module):
    """Reconstruction of context and future frames and the codebooks' loss.

    Args:
        mse_weight, motion_weight: of squared error beside L1, and of the error on pixels that move alone.
        perceptual: LPIPS, where its weights are at hand.
    """

    def __init__(
        self, tokenizer: CompressiveTokenizer, mse_weight: float, motion_weight: float, perceptual: LPIPS | None
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.mse_weight, self.motion_weight = mse_weight, motion_weight
        self.perceptual = perceptual

    @property
    def description(self) -> str:
        """What images are trained on."""
        terms = ["L1"]
        terms += [f"{self.mse_weight:g} MSE"] if self.mse_weight else []
        terms += [f"{self.motion_weight:g} of it on pixels that move"] if self.motion_weight else []
        terms += ["LPIPS"] if self.perceptual is not None else []
        return " + ".join(terms) + ("" if self.perceptual is not None else ", no LPIPS (perceptual_weights=none)")

    def forward(
        self, context: Tensor, target: Tensor, moving_values: Tensor, quantized: bool, judge: Judge | None
    ) -> tuple[Tensor, dict[str, Tensor], Reconstruction]:
        """
        Args:
            context, target: float (B, K, 3, H, W) and (B, F, 3, H, W) in [0, 1].
            moving_values: (), numbers in the pixels of `target` that move, by which their summed error is divided.
            quantized: whether codes are used, or the tokenizer is a plain autoencoder.
            judge: the adversarial term, if there is one.
        Returns:
            loss, its terms, and the reconstruction without gradients.
        """
        out = self.tokenizer(torch.cat([context, target], dim=1), quantized)
        terms = {
            **self._images(target, out.future),
            **{f"context_{name}": term for name, term in self._images(context, out.context).items()},
        }
        if self.motion_weight:
            moving = moved(target, context[:, -1])  # (B, F, 1, H, W)
            error = (moving * self._error(target, out.future)).sum() / moving_values
            terms["motion"] = self.motion_weight * error
        if quantized:
            terms |= {"commit": out.commit_loss, "dynamics_commit": out.dynamics_commit_loss}
        if judge is not None:
            images = torch.cat([out.context.flatten(0, 1), out.future.flatten(0, 1)])
            last = self.tokenizer.cond_decoder.conv_out.weight
            terms["adversarial"] = judge(images, terms.get("lpips", terms["pixel"]), last)
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        metrics = {f"tokenizer_{name}": term.detach() for name, term in (terms | {"loss": loss}).items()}
        return loss, metrics, Reconstruction(*(field.detach() for field in out))

    def _images(self, target: Tensor, output: Tensor) -> dict[str, Tensor]:
        """Losses between images (B, F, 3, H, W)."""
        terms = {"pixel": self._error(target, output).mean()}
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(target.flatten(0, 1), output.flatten(0, 1)).mean()
        return terms

    def _error(self, target: Tensor, output: Tensor) -> Tensor:
        difference = output.float() - target
        return difference.abs() + self.mse_weight * difference.square()


class Target(NamedTuple):
    """What a head learns from in a part of a batch."""

    values: Tensor  # float (B, T), environment units, NaN where nothing is known
    weight: Tensor  # (), of the part's mean, so that the mean over all parts is that over all that is known


def split_targets(clips: Clips | TokenClips, clean: Tensor, parts: int) -> list[dict[str, Target]]:
    """What the heads learn from, for each of the parts of a batch; nothing in clips that are not `clean`, bool (B,)."""
    targets = clips.targets() if isinstance(clips, Clips) else {"reward": clips.rewards}
    split: list[dict[str, Target]] = [{} for _ in range(parts)]
    for name, target in targets.items():
        target = target.where(clean[:, None], torch.nan)
        known = target.isfinite().float()
        share = parallel.all_reduce_sum(known.mean()) / parallel.processes()
        for part, values in zip(split, target.chunk(parts), strict=True):
            part[name] = Target(values, values.isfinite().float().mean() / share.clamp_min(1e-6))
    return split


class TransformerLoss(nn.Module):
    """Cross-entropy of the next token and the losses of the heads.

    Args:
        head_weights: of a head's loss by its name; 1 where nothing is said.
    """

    def __init__(self, model: VideoGPT, head_weights: Mapping[str, float]):
        super().__init__()
        linears = [*model.heads.values(), *([] if model.action_linear is None else [model.action_linear])]
        self.parts = nn.ModuleList([model.transformer, *linears])  # all of the model but its tokenizer
        self.predict = model.predict
        self.head_weights = dict(head_weights)

    def forward(
        self, tokens: Tensor, labels: Tensor, actions: Tensor, targets: Mapping[str, Target]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokens, labels (B, L), actions (B, T, A), targets (B, T) each, as in `VideoGPT.predict` -> loss, terms."""
        out = self.predict(tokens, labels, actions, {name: target.values for name, target in targets.items()})
        loss, terms = out.ce_loss, {"transformer_ce_loss": out.ce_loss}
        for name, mean in out.head_losses.items():
            terms[f"{name}_loss"] = targets[name].weight * mean
            loss = loss + self.head_weights.get(name, 1.0) * terms[f"{name}_loss"]
        return loss, {name: term.detach() for name, term in (terms | {"transformer_loss": loss}).items()}

"""What is read from the hidden state of a frame's last token: the reward, and whatever else a decision may earn.

A new head is a class here and a name in `HEADS`; its target comes with the clips under the same name.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|): rewards of any size on one scale (Hafner et al., arXiv 2301.04104)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


class Head(nn.Linear):
    """One number for each hidden state, always in float32. It starts at zero: an error that is large while nothing is
    known does not drown what the tokens have to teach."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) -> raw predictions (...)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float()).squeeze(-1)

    def value(self, raw: Tensor) -> Tensor:
        """Raw predictions in environment units."""
        raise NotImplementedError

    def loss(self, raw: Tensor, target: Tensor) -> Tensor:
        """Mean over raw predictions with a target in environment units, both (B, F), NaN where there is none -> ()."""
        known = target.isfinite()
        return (self._errors(raw, target.nan_to_num().float()) * known).sum() / known.sum().clamp_min(1)

    def _errors(self, raw: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


class RewardHead(Head):
    """Squared error in symlog space, as officially."""

    def value(self, raw: Tensor) -> Tensor:
        return symexp(raw)

    def _errors(self, raw: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(raw, symlog(target), reduction="none")


class ProbabilityHead(Head):
    """Of an event that happened (1), or did not (0)."""

    def value(self, raw: Tensor) -> Tensor:
        return raw.sigmoid()

    def _errors(self, raw: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(raw, target, reduction="none")


HEADS: dict[str, type[Head]] = {"reward": RewardHead, "success": ProbabilityHead, "continue": ProbabilityHead}

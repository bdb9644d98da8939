"""What is read off a state: reward, continuation, value, action.

Reward and value are distributions over bins that lie exponentially far apart, so that one head fits rewards of any size
(Hafner et al., arXiv 2301.04104, "symexp twohot"); `embodied/jax/heads.py` and `outs.py` of the official code.

Letters: N any leading dimensions, I features of a state, A action.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.dreamerv3.nets import MLP

LARGEST_BIN = 20.0  # in symlog space


def symexp(x: Tensor) -> Tensor:
    return x.sign() * x.abs().expm1()


class TwoHotHead(nn.Module):
    """Features (*N, I) -> logits float32 (*N, bins) of a distribution over numbers."""

    def __init__(self, inputs: int, units: int, layers: int, bins: int) -> None:
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.logits = nn.Linear(units, bins)
        lower = symexp(torch.linspace(-LARGEST_BIN, 0, bins // 2 + 1))
        self.register_buffer("bins", torch.cat([lower, -lower[:-1].flip(0)]), persistent=False)
        self.bins: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(self.mlp(features)).float()

    def mean(self, logits: Tensor) -> Tensor:
        """(*N, bins) -> (*N). Bins of opposite sign are paired first: equal probabilities give exactly zero."""
        probs, half = logits.softmax(-1), len(self.bins) // 2
        return ((probs[..., half + 1 :] - probs[..., :half].flip(-1)) * self.bins[half + 1 :]).sum(-1)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy (*N) to `target` (*N), shared between the two bins next to it."""
        target = target.detach().contiguous()
        above = torch.bucketize(target, self.bins, right=True)
        below, above = (above - 1).clamp(min=0), above.clamp(max=len(self.bins) - 1)
        to_below, to_above = (self.bins[below] - target).abs(), (self.bins[above] - target).abs()
        share = torch.where(below == above, 0.5, to_below / (to_below + to_above))  # of the bin above
        logp = logits.log_softmax(-1)
        logp_below, logp_above = (logp.gather(-1, place.unsqueeze(-1)).squeeze(-1) for place in (below, above))
        return -((1 - share) * logp_below + share * logp_above)


class ContinueHead(nn.Module):
    """Features (*N, I) -> logit float32 (*N) that the episode goes on."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.logit = nn.Linear(units, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.logit(self.mlp(features)).float().squeeze(-1)


class Actor(nn.Module):
    """Features (*N, I) -> mean in (-1, 1) and standard deviation of a normal distribution, float32 (*N, A) each."""

    def __init__(self, inputs: int, units: int, layers: int, action_dim: int, min_std: float, max_std: float) -> None:
        super().__init__()
        self.mlp = MLP(inputs, units, layers)
        self.mean = nn.Linear(units, action_dim)
        self.std = nn.Linear(units, action_dim)
        self.min_std, self.max_std = min_std, max_std

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.mlp(features)
        std = torch.sigmoid(self.std(hidden).float() + 2.0)
        return torch.tanh(self.mean(hidden).float()), (self.max_std - self.min_std) * std + self.min_std


def normal_log_prob(mean: Tensor, std: Tensor, action: Tensor) -> Tensor:
    """Log density (*N) of actions (*N, A)."""
    return (-0.5 * ((action - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def normal_entropy(std: Tensor) -> Tensor:
    """(*N) of (*N, A)."""
    return (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def binary_loss(logit: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (*N) between sigmoid(logit) and a probability (*N)."""
    return F.binary_cross_entropy_with_logits(logit, target, reduction="none")

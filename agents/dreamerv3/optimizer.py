"""LaProp with adaptive gradient clipping: what DreamerV3 learns with.

Each gradient is clipped by its weight's norm (Brock et al., arXiv 2102.06171, by whole tensors), divided by the root of
its running mean square and only then averaged (Ziyin et al., arXiv 2002.04839); `embodied/jax/opt.py` of the official
code. The learning rate rises linearly from 0, so the first step changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SMALLEST_WEIGHT = 1e-3  # norm that clipping takes a smaller weight for


class LaProp:
    """Steps for named parameters; no step waits for the device."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        lr: float,
        warmup_updates: int,
        agc: float,
        beta1: float,
        beta2: float,
        eps: float,
    ) -> None:
        self._names, self._parameters = list(parameters), list(parameters.values())
        self.lr, self.warmup_updates, self.agc = lr, warmup_updates, agc
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.updates = 0
        self._square = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._momentum = [torch.zeros_like(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def step(self) -> Tensor:
        """One step down the gradients of the parameters, which are then cleared; their norm before clipping."""
        taken = []
        for name, parameter in zip(self._names, self._parameters, strict=True):
            assert parameter.grad is not None, f"{name} took no part in the loss"
            taken.append(parameter.grad)
            parameter.grad = None
        gradients = tuple(taken)
        norms = torch._foreach_norm(gradients)
        if self.agc:
            limits = torch._foreach_norm(self._parameters)
            torch._foreach_clamp_min_(limits, SMALLEST_WEIGHT)
            torch._foreach_mul_(limits, self.agc)
            excess = torch._foreach_div(norms, limits)
            torch._foreach_clamp_min_(excess, 1.0)
            gradients = torch._foreach_div(gradients, excess)

        learning_rate = self.lr * min(1.0, self.updates / self.warmup_updates) if self.warmup_updates else self.lr
        self.updates += 1
        torch._foreach_mul_(self._square, self.beta2)
        torch._foreach_addcmul_(self._square, gradients, gradients, 1 - self.beta2)
        root = torch._foreach_div(self._square, 1 - self.beta2**self.updates)
        torch._foreach_sqrt_(root)
        torch._foreach_add_(root, self.eps)
        torch._foreach_lerp_(self._momentum, torch._foreach_div(gradients, root), 1 - self.beta1)
        alpha = -learning_rate / (1 - self.beta1**self.updates)
        torch._foreach_add_(self._parameters, self._momentum, alpha=alpha)
        return torch.stack(norms).norm()

    def state_dict(self) -> dict[str, Any]:
        """The steps so far and both averages by name; the tensors are the living ones."""
        return {
            "updates": self.updates,
            "square": dict(zip(self._names, self._square, strict=True)),
            "momentum": dict(zip(self._names, self._momentum, strict=True)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned."""
        self.updates = state["updates"]
        for i, name in enumerate(self._names):
            self._square[i].copy_(state["square"][name])
            self._momentum[i].copy_(state["momentum"][name])

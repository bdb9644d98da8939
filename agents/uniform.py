"""An agent that draws every action uniformly: it fills the replay before learning starts, and is
the floor that any learner has to beat."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.api import TransitionBatch
from agents.seeding import substreams


class Uniform:
    """Uniform actions in [-1, 1] from generators of its own."""

    def __init__(self, action_dim: int, device: torch.device | str, seed: int) -> None:
        self.action_dim = action_dim
        self.device = torch.device(device)
        training_seed, evaluation_seed = substreams(seed, 2)
        self._training = torch.Generator(self.device).manual_seed(training_seed)
        # Evaluation draws from a stream of its own: evaluating more often must not change training.
        self._evaluation = torch.Generator(self.device).manual_seed(evaluation_seed)

    def begin_episode(self, eval_mode: bool) -> None:
        """Stateless: there is nothing to forget."""

    def act(self, obs: Tensor, decision: int, eval_mode: bool) -> Tensor:
        """Actions float32 (B, A); of `obs` only the batch size is read."""
        generator = self._evaluation if eval_mode else self._training
        return torch.rand(len(obs), self.action_dim, generator=generator, device=self.device) * 2 - 1

    def update(self, batch: TransitionBatch, decision: int) -> dict[str, Tensor]:
        """Learns nothing."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """It has none."""
        return {}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Nothing to take over."""

    def state(self) -> dict[str, Any]:
        """Both random streams."""
        return {"training": self._training.get_state(), "evaluation": self._evaluation.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state()` returned."""
        self._training.set_state(state["training"].cpu())
        self._evaluation.set_state(state["evaluation"].cpu())

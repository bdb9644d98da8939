"""An agent that acts as another one without exploring, plus Gaussian noise of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from agents.api import Agent, TransitionBatch


class Noisy:
    """`agent`'s evaluation actions with noise. It learns nothing, and draws nothing from `agent`'s training randomness.

    Args:
        agent: whose actions; it has no memory, or its evaluation episodes would be disturbed.
        stddev: of the noise, in action units.
        device: where the actions are.
        seed: of the noise.
    """

    def __init__(self, agent: Agent, stddev: float, device: torch.device | str, seed: int) -> None:
        self.agent, self.stddev = agent, stddev
        self._generator = torch.Generator(device).manual_seed(seed)

    def begin_episode(self, eval_mode: bool) -> None:
        """Nothing: `agent` has no memory."""

    def act(self, obs: Tensor, decision: int, eval_mode: bool) -> Tensor:
        """Actions float32 (B, A) in [-1, 1] for obs uint8 (B, C, H, W); with `eval_mode` without the noise."""
        action = self.agent.act(obs, decision, eval_mode=True)
        if eval_mode:
            return action
        noise = torch.randn(action.shape, generator=self._generator, device=action.device)
        return (action + self.stddev * noise).clamp(-1.0, 1.0)

    def update(self, batch: TransitionBatch, decision: int) -> dict[str, Tensor]:
        """Learns nothing."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """It has none of its own."""
        return {}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Nothing to take over."""

    def state(self) -> dict[str, Any]:
        """The random state."""
        return {"generator": self._generator.get_state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state()` returned."""
        self._generator.set_state(state["generator"].cpu())

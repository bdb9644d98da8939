"""Are dreams good enough to learn from? Each real episode is dreamt while it is new to the world model.

A world model is worst where the policy has just come to be: what it promises there is wrong in a way that the policy
then looks for. So each episode that ends is first dreamt under the actions that were taken, and dreams enter the
agent's batches only while the rewards dreamt of the newest episodes correlate with what was earned (`dream_gate`).
"""

from collections import deque

import torch
from torch import Tensor

from mbrl.rollout import to_clips
from mbrl.validate import cut_clips
from world_model import Episode, WorldModel, imagine
from world_model.api import StartOptions
from world_model.metrics import correlation

EPISODES = 5  # over whose rewards the correlation is taken
CLIPS = 8  # dreamt of each


class Gate:
    """Args: `least`, the correlation from which on it is open; 0 leaves it open always."""

    def __init__(self, least: float) -> None:
        self.least = least
        self._judged: deque[tuple[Tensor, Tensor]] = deque(maxlen=EPISODES)  # rewards, dreamt and true

    @property
    def correlation(self) -> float:
        """Of dreamt and true rewards of the newest episodes; NaN while there is none to be had."""
        if not self._judged:
            return float("nan")
        dreamt, true = (torch.cat(rewards) for rewards in zip(*self._judged, strict=True))
        return correlation(dreamt, true)

    @property
    def open(self) -> bool:
        return not self.least or self.correlation >= self.least

    @torch.no_grad()
    def judge(self, world: WorldModel, episode: Episode, horizon: int, seed: int) -> None:
        """Dream `CLIPS` windows of an episode that the model has not learned from; the draws come from `seed`."""
        known = world.context_length
        cut = cut_clips([episode], CLIPS, known + horizon, seed)
        if cut is None:
            return
        clips, origins = to_clips(cut[0], world.device), cut[1]
        origins = origins and [origin._replace(decision=origin.decision + known - 1) for origin in origins]
        # The likeliest tokens: what is asked is what the model knows, not how it varies.
        options = StartOptions(
            temperature=0.0, top_k=1, generator=torch.Generator(world.device).manual_seed(seed), origins=origins
        )
        actions = clips.actions[:, known - 1 : -1]
        dream = imagine(world, clips.frames[:, :known], actions, horizon, **options)
        assert dream.rewards is not None, "make_world takes no model without a reward head"
        self._judged.append((dream.rewards.float().cpu().flatten(), clips.rewards[:, known - 1 : -1].cpu().flatten()))

    def state(self) -> list[tuple[Tensor, Tensor]]:
        return list(self._judged)

    def load_state(self, state: list[tuple[Tensor, Tensor]]) -> None:
        self._judged = deque(state, maxlen=EPISODES)

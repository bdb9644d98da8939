"""Are dreams good enough to learn from? Each real episode is dreamt while it is new to the world model.

A world model is worst where the policy has just come to be: what it promises there is wrong in a way that the policy
then looks for. So each episode that ends is first dreamt under the actions that were taken, and dreams enter the
agent's batches only while the rewards dreamt of the newest episodes correlate with what was earned (`dream_gate`).
"""

import math

import torch
from torch import Tensor

from mbrl.rollout import to_clips
from mbrl.world.validate import cut_clips
from world_model import Episode, WorldModel, imagine
from world_model.metrics import correlation

EPISODES = 5  # over whose rewards the correlation is taken
CLIPS = 8  # dreamt of each


class Gate:
    """Open while the `correlation` of dreamt and true rewards of the newest episodes is `least` or more, or that is 0.

    The correlation is NaN while there is none to be had.
    """

    def __init__(self, least: float) -> None:
        self.least = least
        self.load_state([])

    @property
    def open(self) -> bool:
        return not self.least or self.correlation >= self.least

    @torch.no_grad()
    def judge(self, world: WorldModel, episode: Episode, horizon: int, seed: int) -> None:
        """Dream `CLIPS` windows of an episode that the model has not learned from; `seed` chooses them."""
        known = world.context_length
        cut = cut_clips([episode], CLIPS, known + horizon, seed, known)
        if cut is None:
            return
        clips, origins = to_clips(cut[0], world.device), cut[1]
        actions, true = clips.actions[:, known - 1 : -1], clips.rewards[:, known - 1 : -1]
        # The likeliest tokens: what is asked is what the model knows, not how it varies.
        dream = imagine(world, clips.frames[:, :known], actions, horizon, temperature=0.0, origins=origins)
        assert dream.rewards is not None, "make_world takes no model without a reward head"
        self.load_state([*self._judged, (dream.rewards.float().cpu(), true.cpu())])

    def state(self) -> list[tuple[Tensor, Tensor]]:
        return self._judged

    def load_state(self, state: list[tuple[Tensor, Tensor]]) -> None:
        """Rewards of one episode after the other, dreamt and true, each (CLIPS, horizon); the newest count."""
        self._judged = state[-EPISODES:]
        rewards = [torch.cat(kind) for kind in zip(*self._judged, strict=True)]
        self.correlation = correlation(*rewards) if rewards else math.nan

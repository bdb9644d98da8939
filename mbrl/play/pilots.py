"""Who drives when nobody holds a key: a trained policy, the task's scripted expert, a planner in the dream.

Letters: K frames of a stack, H W image, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
from torch import Tensor

from agents import Planner
from mbrl.collector import expert_action
from mbrl.experiment.settings import planner_preset
from mbrl.interop import Policy
from mbrl.plan.scores import Score, rewards, score
from mbrl.play.drive import Drive
from mbrl.play.tree import Moment

YOU = "you"
Eyes = Literal["simulator", "dream"]
# A plan that is ready within seconds on a laptop: 2 x 24 futures of 6 decisions, of which 3 are taken.
QUICK = replace(planner_preset("icem"), horizon=6, samples=24, iterations=2, elites=6, kept=2, execute=3)


class TakenBack(Exception):
    """Somebody else drives: the plan is of no use any more."""


class Pilot(Protocol):
    def act(self, drive: Drive, eyes: Eyes) -> np.ndarray:
        """What it does where the drive is: float32 (A,) in [-1, 1]; `eyes` are whose images it looks at."""
        ...


def decided_in(moment: Moment) -> Moment | None:
    """Where the last decision before a moment was taken."""
    while moment.action is None and moment.parent is not None:
        moment = moment.parent
    return moment.parent


class Learned:
    """The policy of a run, without exploring. One with a memory begins anew if the last decision was not its own."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._acted_in: Moment | None = None

    def act(self, drive: Drive, eyes: Eyes) -> np.ndarray:
        if self._acted_in is None or decided_in(drive.here) is not self._acted_in:
            self._policy.begin_episode()
        self._acted_in = drive.here
        stack = drive.tree.dream_stack(drive.here) if eyes == "dream" else drive.tree.real_stack(drive.here)
        return self._policy.act(stack.reshape(-1, *stack.shape[2:]))  # (3 K, H, W)


class Expert:
    """Meta-world's script, which knows where everything is."""

    def act(self, drive: Drive, eyes: Eyes) -> np.ndarray:
        return expert_action(drive.simulator())


class PlanAhead:
    """iCEM on the rewards that the model promises; it looks at the dream alone.

    Args:
        taken_back: whether to stop planning.
    """

    def __init__(self, action_dim: int, seed: int, taken_back: Callable[[], bool]) -> None:
        self._planner = Planner(QUICK, action_dim, seed, "cpu")
        self._taken_back = taken_back
        self._ahead: list[np.ndarray] = []
        self._acted_in: Moment | None = None

    def act(self, drive: Drive, eyes: Eyes) -> np.ndarray:
        if self._acted_in is None or decided_in(drive.here) is not self._acted_in:
            self._planner.reset()
            self._ahead = []
        self._acted_in = drive.here
        if not self._ahead:
            plan = self._planner.plan(self._score(drive))
            self._ahead = list(plan.actions[: QUICK.execute].numpy())
        return self._ahead.pop(0)

    def _score(self, drive: Drive) -> Score:
        """Of plans from where the drive is. Raises TakenBack between two iterations."""
        scores = score(drive.dreaming().rollout.fork(temperature=0.0), rewards(discount=1.0))

        def unless_taken_back(actions: Tensor) -> Tensor:
            if self._taken_back():
                raise TakenBack
            return scores(actions)

        return unless_taken_back

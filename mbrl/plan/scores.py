"""What a plan is worth to a world model: scores for `agents.planner.Planner`.

    score = reward_score(lambda: world.start(context, temperature=0, horizon=10), discount=0.99)
    plan = planner.plan(score)                 # context (1, K, 3, H, W): one start, N futures

All candidates of an iteration share what the model read of the start. Let the model take the likeliest (temperature 0):
otherwise the planner picks the luckiest draw. A factory that also seeds the generator draws alike in every iteration.

Letters: N candidates, K frames given, T steps of a plan (the planner's horizon), S stacked frames, A action.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from world_model.api import Rollout, Step

RolloutFactory = Callable[[], Rollout]  # one dream (B = 1) from now on; called once an iteration
Score = Callable[[Tensor], Tensor]

MAX_ROWS = 256  # dreams side by side


def reward_score(
    rollout_factory: RolloutFactory,
    discount: float,
    terminal: Callable[[Tensor], Tensor] | None = None,
    *,
    stack: int = 3,
    max_rows: int = MAX_ROWS,
) -> Score:
    """The sum over t of discount^t reward_t, plus discount^T times the value of where it ends.

    Args:
        terminal: the newest `stack` frames (n, S, 3, H, W) in [0, 1], oldest first -> values (n,) in units of the
            return. Without it no frame is decoded.
        max_rows: more candidates than that are scored one part after the other.
    Returns:
        Actions (N, T, A) -> (N,), environment units.
    """

    def measure(start: Rollout, steps: list[Step]) -> Tensor:
        rewards = torch.stack([step.heads["reward"].float() for step in steps], dim=1)  # (n, T)
        total = rewards @ discount ** torch.arange(len(steps), device=rewards.device, dtype=rewards.dtype)
        if terminal is None:
            return total
        frames = torch.stack([step.frame for step in steps[-stack:]], dim=1)
        if (missing := stack - len(steps)) > 0:
            frames = torch.cat([start.frames[:, -missing:].expand(len(frames), -1, -1, -1, -1), frames], dim=1)
        return total + discount ** len(steps) * terminal(frames).float()

    return _by_parts(rollout_factory, measure, max_rows)


def image_score(
    rollout_factory: RolloutFactory,
    goal: Tensor,
    *,
    last: int | None = None,
    weight: float = 1.0,
    max_rows: int = MAX_ROWS,
) -> Score:
    """Minus `weight` times the sum of squared errors between the dreamt frames and a goal frame.

    VP2 (2304.13723) takes all frames and a weight of 0.5 (RoboDesk) or 1 (robosuite). It also counts the last frame
    given, which is the same for all candidates.

    Args:
        goal: (3, H, W) in [0, 1].
        last: only so many frames at the end count, and only those are decoded; all by default.
    Returns:
        Actions (N, T, A) -> (N,).
    """

    def measure(start: Rollout, steps: list[Step]) -> Tensor:
        counted = steps if last is None else steps[-last:]
        aim = goal.to(start.frames.device)
        errors = [(step.frame.float() - aim).square().sum((1, 2, 3)) for step in counted]
        return -weight * torch.stack(errors).sum(0)

    return _by_parts(rollout_factory, measure, max_rows)


def _by_parts(
    rollout_factory: RolloutFactory, measure: Callable[[Rollout, list[Step]], Tensor], max_rows: int
) -> Score:
    """A score that dreams at most `max_rows` futures side by side, in equal parts."""

    def dream(start: Rollout, actions: Tensor) -> Tensor:
        rollout = start.expand(len(actions))
        # All steps before any head: a model may read a step's heads together with the next step.
        return measure(start, [rollout.step(action) for action in actions.unbind(1)])

    @torch.no_grad()
    def score(actions: Tensor) -> Tensor:
        start = rollout_factory()
        actions = actions.to(start.frames.device, torch.float32)
        return torch.cat([dream(start, part) for part in actions.chunk(-(-len(actions) // max_rows))])

    return score

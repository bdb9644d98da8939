"""What a plan is worth to a world model: scores for `agents.Planner`.

    start = world.start(context, temperature=0, horizon=10)    # context (1, K, 3, H, W): one start, N futures
    cost = weighted([(0.5, image(goal)), (10.0, success())])
    plan = planner.plan(score(start, cost))

A measure looks at steps from a start, dreamt or real, and says what they are worth; frames that no measure asks for are
never decoded. All candidates share what the model read of the start. Let the model take the likeliest (temperature 0):
otherwise the planner picks the luckiest draw.

Letters: N candidates, n of them side by side, K frames given, T steps of a plan, S stacked frames, A action, m tokens a
frame, D width of their code vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from world_model.api import Rollout, Step, TokenizedRollout

Score = Callable[[Tensor], Tensor]
# One start and T steps of n futures from it -> (n,), higher is better.
Measure = Callable[[Rollout, Sequence[Step]], Tensor]

MAX_ROWS = 256  # dreams side by side


def score(start: Rollout, measure: Measure, max_rows: int = MAX_ROWS) -> Score:
    """Dream candidates from a start of one row (B = 1), which can still go on, and measure them.

    Args:
        max_rows: more candidates than that are dreamt one part after the other, in equal parts.
    Returns:
        Actions (N, T, A) -> (N,).
    """

    def dream(actions: Tensor) -> Tensor:
        rollout = start.expand(len(actions))
        # All steps before any head: a model may read a step's heads together with the next step.
        return measure(start, [rollout.step(action) for action in actions.unbind(1)])

    @torch.no_grad()
    def scores(actions: Tensor) -> Tensor:
        actions = actions.to(start.frames.device, torch.float32)
        return torch.cat([dream(part) for part in actions.chunk(-(-len(actions) // max_rows))])

    return scores


def rewards(discount: float, terminal: Callable[[Tensor], Tensor] | None = None, stack: int = 3) -> Measure:
    """The sum over t of discount^t reward_t, plus discount^T times the value of where it ends; environment units.

    Args:
        terminal: the newest `stack` frames (n, S, 3, H, W) in [0, 1], oldest first -> values (n,) in units of the
            return. Without it no frame is decoded.
    """

    def measure(start: Rollout, steps: Sequence[Step]) -> Tensor:
        earned = torch.stack([step.heads["reward"].float() for step in steps], dim=1)  # (n, T)
        total = (earned * discount ** torch.arange(len(steps), device=earned.device)).sum(1)
        if terminal is None:
            return total
        frames = torch.stack([step.frame for step in steps[-stack:]], dim=1)
        if (missing := stack - len(steps)) > 0:
            frames = torch.cat([start.frames[:, -missing:].expand(len(frames), -1, -1, -1, -1), frames], dim=1)
        return total + discount ** len(steps) * terminal(frames).float()

    return measure


def image(goal: Tensor, last: int | None = None) -> Measure:
    """Minus the sum of squared errors between frames and a goal frame.

    VP2 (2304.13723) weighs it by 0.5 (RoboDesk) or 1 (robosuite), takes all frames, and also counts the last frame
    given, which is the same for all candidates.

    Args:
        goal: (3, H, W) in [0, 1].
        last: only so many frames at the end count, and only those are decoded; all by default.
    """

    def error(start: Rollout, step: Step) -> Tensor:
        frame = step.frame.float()
        return (frame - goal.to(frame.device)).square().sum((1, 2, 3))

    return _summed(error, last, sign=-1.0)


def codes(goal: Tensor, last: int | None = None) -> Measure:
    """Minus the sum of squared distances between the code vectors of steps and of a goal frame; nothing is decoded.

    The goal is encoded as if it were the next frame of the start. That is what a model's tokens mean as long as it has
    not begun again from frames of its own, so T must fit into the model's positions.

    Args:
        goal, last: see `image`.
    """

    def measure(start: Rollout, steps: Sequence[Step]) -> Tensor:
        assert isinstance(start, TokenizedRollout), "the model has no tokens"
        aim = start.codes(start.encode(goal[None].to(start.frames.device)))  # (1, m, D)

        def error(_: Rollout, step: Step) -> Tensor:
            assert step.tokens is not None
            return (start.codes(step.tokens) - aim).float().square().sum((1, 2))

        return _summed(error, last, sign=-1.0)(start, steps)

    return measure


def success(last: int | None = None) -> Measure:
    """The sum of the logits of success, as the model's own head predicts it; `last` as in `image`."""
    return _summed(lambda _, step: torch.logit(step.heads["success"].float(), eps=1e-3), last)


def classifier(judge: Callable[[Tensor], Tensor], last: int | None = None) -> Measure:
    """The sum of the logits of a classifier, frames (n, 3, H, W) in [0, 1] -> (n,) or (n, 1); `last` as in `image`."""
    return _summed(lambda _, step: judge(step.frame.float()).flatten(), last)


def weighted(parts: Sequence[tuple[float, Measure]]) -> Measure:
    """A weighted sum of measures, over the same dreams."""

    def measure(start: Rollout, steps: Sequence[Step]) -> Tensor:
        return torch.stack([weight * part(start, steps) for weight, part in parts]).sum(0)

    return measure


def _summed(of_step: Callable[[Rollout, Step], Tensor], last: int | None, sign: float = 1.0) -> Measure:
    def measure(start: Rollout, steps: Sequence[Step]) -> Tensor:
        counted = steps if last is None else steps[-last:]
        return sign * torch.stack([of_step(start, step) for step in counted]).sum(0)

    return measure

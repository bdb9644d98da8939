"""One episode of planning, in which what was promised is held against what was earned.

A plan promises something for those of its decisions that are taken before the next plan: the measure of their dreamt
steps. The same measure of the steps that really followed is what was earned. Planners exploit a model's errors, and the
difference shows how much.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import torch

from agents import Uniform
from mbrl.collector import EpisodeRecorder
from mbrl.plan.agent import Planned, PlanningAgent
from mbrl.plan.offset import Aim
from mbrl.plan.scores import Measure
from mbrl.replay import Episode
from mbrl.rollout import to_float, to_uint8
from world_model.api import PlainStep, TokenizedRollout


class Outcome(NamedTuple):
    """What came of one plan."""

    promised: float
    earned: float
    imagined: np.ndarray  # uint8 (T, 3, H, W), the frames that it had dreamt of the decisions taken
    plan_s: float  # seconds that it took


class Played(NamedTuple):
    episode: Episode
    plans: list[Outcome]
    success: bool  # the task's own, or that the goal state of an `Aim` was reached


@torch.no_grad()
def play(agent: PlanningAgent | Uniform, recorder: EpisodeRecorder, seed: int, aim: Aim | None = None) -> Played:
    """An episode until its first success, or its end.

    It begins with its seed, and success is the task's own; or it begins with `aim`, and success is to reach its goal
    state, looked at after each decision.
    """
    if aim is None:
        recorder.begin(seed)
    else:
        recorder.begin_at(aim.moment, aim.origin)
    agent.begin_episode(eval_mode=True)
    outcomes: list[Outcome] = []
    current: Planned | None = None
    begun, plan_s = 0, 0.0  # decisions before the current plan, and its seconds
    success = False
    while not (recorder.over or success):
        started = time.perf_counter()
        action = agent.act(torch.from_numpy(recorder.obs)[None], 0, eval_mode=True)
        if isinstance(agent, PlanningAgent) and agent.latest is not current:
            seconds = time.perf_counter() - started
            if current is not None:
                outcomes.append(_outcome(current, agent.measure, recorder.episode(), begun, plan_s))
            current, begun, plan_s = agent.latest, recorder.decisions, seconds
        recorder.step(action[0].float().cpu().numpy())
        success = recorder.success if aim is None else aim.reached()
    if isinstance(agent, PlanningAgent) and current is not None:
        outcomes.append(_outcome(current, agent.measure, recorder.episode(), begun, plan_s))
    return Played(recorder.episode(), outcomes, success)


def _outcome(planned: Planned, measure: Measure, episode: Episode, begun: int, plan_s: float) -> Outcome:
    """Hold a plan against the decisions of the episode from `begun` on."""
    start, taken = planned.start, slice(begun, None)
    device = start.frames.device
    dream = start.fork()
    actions = torch.from_numpy(episode.actions[taken]).to(device)  # (T, A)
    dreamt = [dream.step(action[None]) for action in actions]
    frames = to_float(torch.from_numpy(episode.frames[1:][taken])).to(device)  # (T, 3, H, W)
    assert episode.successes is not None
    earned = torch.from_numpy(np.stack([episode.rewards[taken], episode.successes[taken]])).to(device)  # (2, T)
    real = [
        PlainStep(
            frame[None],
            {"reward": reward[None], "success": success[None]},
            start.encode(frame[None]) if isinstance(start, TokenizedRollout) else None,
        )
        for frame, reward, success in zip(frames, *earned, strict=True)
    ]
    imagined = torch.cat([step.frame for step in dreamt])
    return Outcome(float(measure(start, dreamt)), float(measure(start, real)), to_uint8(imagined).cpu().numpy(), plan_s)

"""Goals some decisions ahead: an episode begins within a recorded one, and is to reach what came N decisions later.

    goals = OffsetGoals(env, "dm_control/reacher-easy", ahead=25)
    aim = goals.draw(seed)
    obs = env.restore(aim.moment)             # exactly where the recorded episode was, 50 decisions left
    aim.reached()                             # whether env has come to the goal's state

Recorded episodes are those of a folder or, without one, played here: by the scripted expert, or where there is none by
actions that wander. What is drawn depends on the seed alone, and on the folder.

The protocol of LeWM (2603.19312) and stable-worldmodel (2605.21800), but that a start which matches its goal already is
never drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import envs
from mbrl.collector import expert_action
from mbrl.data.scripted import wander
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import UserError
from mbrl.interop.recordings import Recordings
from world_model.api import Origin

PREFIX, NO_DATA = "offset:", "none"
ATTEMPTS = 20  # episodes that are looked at for a start
DIFFERENT = 16  # levels of a pixel: less may come from another OpenGL library
MOST_DIFFERENT = 0.01  # share of such pixels in two images of one state: some at edges


class Aim(NamedTuple):
    """Where an episode begins, and what it is to reach."""

    moment: envs.Snapshot  # as many decisions are left as the budget has
    origin: Origin  # of the same moment
    frame: np.ndarray  # uint8 (3, H, W): how the goal looks
    reached: Callable[[], bool]  # whether the environment is in the goal's state now


class Recorded(NamedTuple):
    """All that playing an episode again needs, and how it looked, if that is known."""

    seed: int
    actions: np.ndarray  # float32 (T, A)
    frames: np.ndarray | None  # uint8 (T + 1, 3, H, W)


def parse_offset(goal: str) -> int | None:
    """N of `goal=offset:N`, None for other goals. Raises UserError: N is no number of decisions."""
    if not goal.startswith(PREFIX):
        return None
    ahead = goal.removeprefix(PREFIX)
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", ahead):
        raise UserError(f"goal={goal}: write goal=offset:<decisions>, a whole number from 1 on, such as offset:25")
    return int(ahead)


class OffsetGoals:
    """What `make plan GOAL=offset:N` draws.

    Args:
        env: of the task; it is moved.
        task: its canonical name.
        ahead: N, decisions from start to goal.
        budget: decisions that may be taken; None is 2 N.
        data: a folder of recorded episodes, or "none".
    Raises:
        UserError: the simulator cannot tell whether a state is reached, N is too large, or the folder has no episodes.
    """

    def __init__(
        self, env: envs.PixelEnv, task: str, ahead: int, budget: int | None = None, data: str = NO_DATA
    ) -> None:
        if not isinstance(env.simulator, envs.Comparable):
            raise UserError(
                f"goal={PREFIX}{ahead}: {task} cannot tell whether a goal state is reached (Meta-world, OGBench and "
                "Reacher of DM Control can)"
            )
        if ahead > env.episode_decisions:
            raise UserError(f"goal={PREFIX}{ahead}: an episode of {task} has {env.episode_decisions} decisions")
        self.env, self.ahead, self._task, self._data = env, ahead, task, data
        self._simulator = env.simulator
        self._budget = budget or 2 * ahead
        self._recordings = None if data == NO_DATA else Recordings(Path(data))

    def draw(self, seed: int) -> Aim:
        """The start and the goal of the episode with this seed. The episode of `env` ends.

        Raises:
            UserError: the folder's episodes are not of this task, or too short; or hardly anything ever moves.
        """
        generator, longest = np.random.default_rng(stream_seed(seed, "start")), 0
        for attempt in range(ATTEMPTS):
            if self._recordings is None:
                recorded = self._play(stream_seed(seed, "recorded", attempt))
            else:
                recorded = self._read(self._recordings, generator)
            longest = max(longest, len(recorded.actions))
            moments = self.env.replay(recorded.seed, recorded.actions)
            # Starts in random order, until one does not match its goal.
            for first in generator.permutation(max(0, len(moments) - self.ahead)).tolist():
                self._simulator.restore(moments[first].states[-1])
                if not self._simulator.matches(moments[first + self.ahead].states[-1]):
                    return self._aim(recorded, moments, first)
        what = f"{ATTEMPTS} episodes of {self._task if self._recordings is None else self._data}"
        if longest < self.ahead:
            raise UserError(f"goal={PREFIX}{self.ahead}: the longest of {what} has {longest} decisions")
        raise UserError(
            f"goal={PREFIX}{self.ahead}: in {what} everything is where it was {self.ahead} decisions before"
        )

    def _aim(self, recorded: Recorded, moments: list[envs.Snapshot], first: int) -> Aim:
        start, end = moments[first], moments[first + self.ahead]
        frame = self._drawn(end)
        if recorded.frames is not None:
            for moment, seen in ((start, recorded.frames[first]), (end, recorded.frames[first + self.ahead])):
                if not _alike(self._drawn(moment), seen):
                    raise UserError(
                        f"data={self._data}: an episode of it, played again, looks different: it was recorded of "
                        f"another task than {self._task}, or with another action_repeat, camera or render_quality"
                    )
            frame = recorded.frames[first + self.ahead]
        moment = start._replace(decision=self.env.episode_decisions - self._budget)
        origin = Origin(recorded.seed, recorded.actions, first)
        return Aim(moment, origin, frame, lambda: self._simulator.matches(end.states[-1]))

    def _drawn(self, moment: envs.Snapshot) -> np.ndarray:
        self._simulator.restore(moment.states[-1])
        return self._simulator.render()

    def _play(self, seed: int) -> Recorded:
        """An episode of the expert, or of a wanderer; nothing is drawn."""
        env, actions = self.env, list[np.ndarray]()
        wanderer = wander(np.random.default_rng(stream_seed(seed, "behaviour")), self.env.action_space.shape[0])
        expert = envs.has_expert(self._task)
        _, info = env.reset(seed=seed)
        while env.decisions_left:
            action = expert_action(env) if expert else wanderer()
            actions.append(np.clip(action, -1, 1).astype(np.float32))
            env.step_unseen(actions[-1])
        return Recorded(info["seed"], np.stack(actions), None)

    def _read(self, recordings: Recordings, generator: np.random.Generator) -> Recorded:
        """One of the folder. Raises UserError: it is of another size, or cannot be played again."""
        episode, key = recordings.draw(generator), f"data={self._data}"
        size, (action_dim,) = self.env.observation_space.shape[-1], self.env.action_space.shape
        height, width = episode.frames.shape[2:]
        if (height, width) != (size, size):
            raise UserError(f"{key}: its frames are {width}x{height} pixels, the model sees {size}x{size}")
        if episode.actions.shape[1] != action_dim:
            raise UserError(
                f"{key}: its actions have {episode.actions.shape[1]} numbers, {self._task} has {action_dim}"
            )
        if episode.seed is None:
            raise UserError(f"{key}: its episodes were recorded without their seeds and cannot be played again")
        if len(episode.actions) > self.env.episode_decisions:
            raise UserError(
                f"{key}: an episode of it has {len(episode.actions)} decisions, one of {self._task} "
                f"{self.env.episode_decisions}: set action_repeat and episode_frames as it was recorded"
            )
        return Recorded(episode.seed, episode.actions, episode.frames)


def _alike(drawn: np.ndarray, seen: np.ndarray) -> bool:
    """Whether two images (3, H, W) can be of one state, drawn on two machines."""
    apart = np.abs(drawn.astype(int) - seen).max(0)  # (H, W)
    return bool((apart > DIFFERENT).mean() <= MOST_DIFFERENT)

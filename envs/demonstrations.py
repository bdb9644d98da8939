"""Demonstrations from the scripted experts: whole episodes, kept only if they succeed.

The paper's protocol puts five of them into the replay buffer of every method (iVideoGPT, App. A.5).
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .errors import ExpertFailed, NoExpert
from .suites import canonical, make, suite_of
from .wrappers import PixelEnv

_ATTEMPTS_PER_EPISODE = 10  # the experts of all six tasks of the paper succeed nearly every time


class Demonstration(NamedTuple):
    """One episode of T decisions: `actions[i]` leads from `frames[i]` to `frames[i + 1]` for `rewards[i]`."""

    frames: np.ndarray  # uint8 (T + 1, 3, H, W)
    actions: np.ndarray  # float32 (T, A) in [-1, 1]
    rewards: np.ndarray  # float32 (T,), success bonus included
    successes: np.ndarray  # float32 (T,), 1.0 where the decision touched success
    seed: int  # of the simulator's reset, as in `PixelEnv.replay`


def collect(task: str, episodes: int, seed: int, **make_kwargs: Any) -> list[Demonstration]:
    """Lets the scripted expert of a task play until `episodes` episodes with a success are there.

    An episode does not stop at success, and an expert's action is held for a whole decision as an agent's is.
    The result depends on the arguments alone.

    Args:
        task: a task's name, as in `envs.make`.
        episodes: how many to collect.
        seed: the first episode's goals follow from it.
        make_kwargs: passed on to `envs.make`.

    Raises:
        NoExpert: the suite has none, as the DM Control suite.
        ExpertFailed: fewer than one episode in ten contains a success.
        UnknownTask, InvalidSetting, MissingGL, MissingPackage: from `envs.make`.
    """
    if not suite_of(canonical(task)).experts:
        raise NoExpert(f"{task!r} has no scripted expert: set demonstrations=0")
    env = make(task, seed, **make_kwargs)
    simulator: Any = env.simulator
    try:
        kept: list[Demonstration] = []
        attempts = episodes * _ATTEMPTS_PER_EPISODE
        for _ in range(attempts):
            if len(kept) == episodes:
                break
            episode = _play(env, simulator.expert_action)
            if episode.successes.any():
                kept.append(episode)
    finally:
        env.close()
    if len(kept) < episodes:
        raise ExpertFailed(
            f"the scripted expert of {task!r} succeeded in {len(kept)} of {attempts} episodes, "
            f"{episodes} demonstrations were asked for: ask for fewer, or set demonstrations=0"
        )
    return kept


def _play(env: PixelEnv, expert: Callable[[int], np.ndarray]) -> Demonstration:
    obs, start = env.reset()
    frames, actions, rewards, successes = [obs[-3:]], [], [], []
    truncated = terminated = False
    while not (truncated or terminated):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the experts of Meta-world warn whenever they exceed [-1, 1]
            action = expert(env.action_repeat)
        obs, reward, terminated, truncated, info = env.step(action)
        frames.append(obs[-3:])
        actions.append(action)
        rewards.append(reward)
        successes.append(info["success"])
    return Demonstration(
        np.stack(frames),
        np.stack(actions),
        np.array(rewards, np.float32),
        np.array(successes, np.float32),
        start["seed"],
    )

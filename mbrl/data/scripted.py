"""Episodes to pre-train on, played by scripted experts and by policies that know nothing.

A source like the readers in `world_model/data/`: `make data SOURCE=metaworld`, which plays tasks of other suites too if
`task_names` names them. By default it plays the 44 tasks
outside the paper's six, so that pre-training never sees a task that an agent is later judged on. An episode depends on
its task, number and seed alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

import envs
from envs.metaworld import PAPER_TASKS, TASKS
from mbrl.collector import expert_action, record
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import UserError
from world_model import Episode
from world_model.data.source import NamedClip

# What plays the episodes of a task, in turn. An agent that learns is at first random, later a noisy expert.
BEHAVIOURS = ("expert", "expert", "wander", "expert", "expert", "wander", "expert", "uniform")
WITHOUT_EXPERT = ("wander", "wander", "uniform")
MAX_NOISE = 1.0  # standard deviation added to an expert's actions: one value an episode, uniformly up to this
WANDER_MEMORY = 0.9  # correlation of a wanderer's actions from one decision to the next

GROUPS = {"pretraining": tuple(task for task in TASKS if task not in PAPER_TASKS), "paper": PAPER_TASKS}


def chosen_tasks(names: tuple[str, ...]) -> list[str]:
    """The tasks that `task_names=[...]` means: names of tasks and of groups."""
    tasks: list[str] = []
    for name in names:
        tasks += GROUPS[name] if name in GROUPS else [envs.canonical(name)]
    if not tasks:
        raise UserError("task_names=[]: name at least one task")
    suites = {envs.suite_of(task).name: task for task in tasks}
    if len(suites) > 1:
        first, other, *_ = suites.values()
        raise UserError(f"task_names: {first} and {other} are of different suites, whose actions differ: one at a time")
    return list(dict.fromkeys(tasks))


@dataclasses.dataclass(frozen=True)
class ScriptedPlay:
    task_names: tuple[str, ...]
    episodes_per_task: int
    seed: int
    action_repeat: int
    episode_frames: int | None
    success_bonus: float
    image_size: int
    camera: str
    render_quality: Literal["fast", "paper"]

    @property
    def unit(self) -> str:
        return "episode"

    def shards(self, size: int) -> dict[str, Sequence[tuple[str, int]]]:
        """A task's episodes are shards of their own, so that one simulator plays a shard."""
        shards: dict[str, Sequence[tuple[str, int]]] = {}
        for task in chosen_tasks(self.task_names):
            for number, first in enumerate(range(0, self.episodes_per_task, size)):
                episodes = range(first, min(first + size, self.episodes_per_task))
                shards[f"{task.replace('/', '-')}-{number:03d}"] = [(task, episode) for episode in episodes]
        return shards

    def clips(self, units: Sequence[tuple[str, int]]) -> Iterator[NamedClip]:
        env = envs.make(
            units[0][0],
            action_repeat=self.action_repeat,
            frame_stack=1,
            episode_frames=self.episode_frames,
            success_bonus=self.success_bonus,
            image_size=self.image_size,
            camera=self.camera,
            render_quality=self.render_quality,
        )
        try:
            for task, episode in units:
                yield f"{task} {episode}", partial(play, env, task, self.seed, episode)
        finally:
            env.close()


def play(env: Any, task: str, seed: int, episode: int) -> Episode:
    """The `episode`-th episode of a task."""
    generator = np.random.default_rng(stream_seed(seed, "behaviour", task, episode))
    behaviours = BEHAVIOURS if envs.has_expert(task) else WITHOUT_EXPERT
    act = _behaviour(env, behaviours[episode % len(behaviours)], generator)
    return record(env, lambda obs: act().clip(-1, 1).astype(np.float32), stream_seed(seed, "data", task, episode))


def _behaviour(env: Any, name: str, generator: np.random.Generator) -> Callable[[], np.ndarray]:
    """A policy that needs no image: it knows the simulator, or nothing."""
    size = env.action_space.shape[0]
    if name == "uniform":
        return lambda: generator.uniform(-1, 1, size)
    if name == "wander":
        return wander(generator, size)
    noise = generator.uniform(0, MAX_NOISE)

    def expert() -> np.ndarray:
        return expert_action(env) + noise * generator.normal(size=size)

    return expert


def wander(generator: np.random.Generator, size: int) -> Callable[[], np.ndarray]:
    """Actions (size,) that go on for a while in one direction, normally distributed: they are not cut to [-1, 1]."""
    action = generator.normal(size=size)

    def act() -> np.ndarray:
        nonlocal action
        action = WANDER_MEMORY * action + (1 - WANDER_MEMORY**2) ** 0.5 * generator.normal(size=size)
        return action

    return act

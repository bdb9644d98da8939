"""Record video with actions and rewards to pre-train on: `make data`, `python -m mbrl.data key=value ...`.

Meta-world's scripted experts and random policies play tasks of the user's choice, by default the 44 outside the paper's
six, so that pre-training never sees a task that an agent is later judged on. Episodes go into the training format of
`world_model/data/clips.py`. Every shard is a job of its own: jobs run in parallel, and the same command again records
only what is missing. What is recorded depends on the settings alone, not on the number of workers.
"""

import dataclasses
import multiprocessing
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

import envs
from envs.metaworld import PAPER_TASKS, TASKS
from mbrl.command import command
from mbrl.run import stream_seed
from mbrl.settings import Count, Positive, Range, UserError, load_plain
from world_model.data import Recording, shard_names, write_shard

# What plays the episodes of a task, in turn. An agent that learns is at first random, later a noisy expert.
BEHAVIOURS = ("expert", "expert", "wander", "expert", "expert", "wander", "expert", "uniform")
MAX_NOISE = 1.0  # standard deviation added to an expert's actions: one value an episode, uniformly up to this
WANDER_MEMORY = 0.9  # correlation of a wanderer's actions from one decision to the next


@dataclasses.dataclass(frozen=True)
class DataSettings:
    source: Literal["metaworld"]
    task_names: tuple[str, ...]
    out: str
    episodes_per_task: Positive
    shard_episodes: Positive
    workers: Count
    seed: Count
    action_repeat: Positive
    episode_frames: Positive | None
    success_bonus: Annotated[float, Range(0.0)]
    image_size: Positive
    camera: str
    render_quality: Literal["fast", "paper"]


class Job(NamedTuple):
    """One shard."""

    task: str
    name: str
    episodes: range
    settings: DataSettings


GROUPS = {"pretraining": tuple(task for task in TASKS if task not in PAPER_TASKS), "paper": PAPER_TASKS}


def chosen_tasks(words: tuple[str, ...]) -> list[str]:
    """The tasks that `task_names=[...]` means: names of tasks and of groups."""
    tasks: list[str] = []
    for word in words:
        tasks += GROUPS[word] if word in GROUPS else [envs.canonical(word)]
    if other := [task for task in tasks if task not in TASKS]:
        raise UserError(f"task_names: {other[0]} is not a task of Meta-world")
    return list(dict.fromkeys(tasks))


def jobs(settings: DataSettings) -> list[Job]:
    """The shards that are not there yet."""
    s, done, found = settings, shard_names(settings.out), []
    for task in chosen_tasks(s.task_names):
        for number, first in enumerate(range(0, s.episodes_per_task, s.shard_episodes)):
            name = f"{task}-{number:03d}"
            if name not in done:
                found.append(Job(task, name, range(first, min(first + s.shard_episodes, s.episodes_per_task)), s))
    return found


def record(job: Job) -> int:
    """Play and write one shard; returns the number of its episodes."""
    s = job.settings
    env = envs.make(
        job.task,
        action_repeat=s.action_repeat,
        frame_stack=1,
        episode_frames=s.episode_frames,
        success_bonus=s.success_bonus,
        image_size=s.image_size,
        camera=s.camera,
        render_quality=s.render_quality,
    )
    try:
        write_shard(s.out, job.name, [play(env, job.task, s.seed, episode) for episode in job.episodes], "metaworld")
    finally:
        env.close()
    return len(job.episodes)


def play(env: Any, task: str, seed: int, episode: int) -> Recording:
    """The `episode`-th episode of a task."""
    generator = np.random.default_rng(stream_seed(seed, "behaviour", task, episode))
    act = _behaviour(env, BEHAVIOURS[episode % len(BEHAVIOURS)], generator)
    obs, _ = env.reset(seed=stream_seed(seed, "data", task, episode))
    frames, actions, rewards, over = [obs], [], [], False
    while not over:
        action = act().clip(-1, 1).astype(np.float32)
        obs, reward, terminated, truncated, _ = env.step(action)
        frames.append(obs)
        actions.append(action)
        rewards.append(reward)
        over = terminated or truncated
    return Recording(np.stack(frames), np.stack(actions), np.array(rewards, np.float32))


def _behaviour(env: Any, name: str, generator: np.random.Generator) -> Callable[[], np.ndarray]:
    """A policy that needs no picture: it knows the simulator, or nothing."""
    size = env.action_space.shape[0]
    if name == "uniform":
        return lambda: generator.uniform(-1, 1, size)
    if name == "wander":
        action = generator.normal(size=size)

        def wander() -> np.ndarray:
            nonlocal action
            action = WANDER_MEMORY * action + (1 - WANDER_MEMORY**2) ** 0.5 * generator.normal(size=size)
            return action

        return wander
    noise = generator.uniform(0, MAX_NOISE)

    def expert() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the experts of Meta-world warn whenever they exceed [-1, 1]
            return env.simulator.expert_action(env.action_repeat) + noise * generator.normal(size=size)

    return expert


def main(words: list[str]) -> None:
    settings = load_plain(DataSettings, "data", words)
    Path(settings.out).mkdir(parents=True, exist_ok=True)
    missing = jobs(settings)
    total = settings.episodes_per_task * len(chosen_tasks(settings.task_names))
    left = sum(len(job.episodes) for job in missing)
    with tqdm(total=total, initial=total - left, unit="episode", dynamic_ncols=True) as bar:
        # Spawned, not forked: an OpenGL context must not be shared.
        with multiprocessing.get_context("spawn").Pool(settings.workers or os.cpu_count()) as pool:
            for episodes in pool.imap_unordered(record, missing):
                bar.update(episodes)
    print(f"{settings.out}: {total} episodes")


if __name__ == "__main__":
    command(main)

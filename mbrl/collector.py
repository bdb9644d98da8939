"""Episodes as they are played: for training, evaluation, demonstrations and data sets alike.

A finished training episode is written to disk and enters the replay buffer whole. Every one begins from a seed of its
own (`stream_seed(seed, "episode", index)`), so a run that continues at the end of an episode needs nothing else of the
environment. `frame` is the public clock: simulator frames of training, evaluation not counted.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import envs
from agents import Agent
from mbrl.experiment.episodes import EpisodeStore
from mbrl.experiment.run import Run, stream_seed
from mbrl.replay import ReplayBuffer
from world_model import Episode, Origin

ATTEMPTS = 10  # episodes a demonstration; the experts of the paper's six tasks succeed nearly every time


class EpisodeRecorder:
    """Plays one episode after the other and keeps what happens in it."""

    def __init__(self, env: envs.PixelEnv) -> None:
        self.env = env
        self._no_actions = np.zeros((0, *env.action_space.shape), np.float32)
        self.over = True  # whether no episode is under way
        self.success = False  # whether the last decision touched success

    def begin(self, seed: int | None = None) -> np.ndarray:
        """Start an episode; the first observation, uint8 (C, H, W)."""
        obs, info = self.env.reset(seed=seed)
        return self._begin(obs, Origin(info["seed"], self._no_actions, 0))

    def begin_at(self, moment: envs.Snapshot, origin: Origin) -> np.ndarray:
        """Go on from a moment of an episode, of which `origin` tells as well; what is recorded begins there."""
        return self._begin(self.env.restore(moment), origin)

    def _begin(self, obs: np.ndarray, origin: Origin) -> np.ndarray:
        self.obs, self._begun, self.over, self.success, self._terminated = obs, origin, False, False, False
        self._frames, self._actions = [self.obs[-3:]], list[np.ndarray]()
        self._rewards, self._successes = list[float](), list[float]()
        return self.obs

    def step(self, action: np.ndarray) -> np.ndarray:
        """Take a decision; the next observation."""
        self.obs, reward, self._terminated, truncated, info = self.env.step(action)
        self._frames.append(self.obs[-3:])
        self._actions.append(action)
        self._rewards.append(reward)
        self._successes.append(info["success"])
        self.success = bool(info["success"])
        self.over = self._terminated or truncated
        return self.obs

    @property
    def decisions(self) -> int:
        """Taken since `begin`."""
        return len(self._actions)

    @property
    def origin(self) -> Origin:
        """The present moment."""
        before = self._begun.actions[: self._begun.decision]
        taken = np.asarray([*before, *self._actions], np.float32).reshape(-1, *self.env.action_space.shape)
        return Origin(self._begun.seed, taken, len(taken))

    def episode(self) -> Episode:
        """What was recorded since `begin`, at least one decision."""
        return Episode(
            np.stack(self._frames),
            np.stack(self._actions).astype(np.float32),
            np.asarray(self._rewards, np.float32),
            self._terminated,
            successes=np.asarray(self._successes, np.float32),
            seed=None if self._begun.decision else self._begun.seed,
        )


def record(env: envs.PixelEnv, act: Callable[[np.ndarray], np.ndarray], seed: int | None = None) -> Episode:
    """One whole episode under `act`, which turns an observation into an action."""
    recorder = EpisodeRecorder(env)
    obs = recorder.begin(seed)
    while not recorder.over:
        obs = recorder.step(act(obs))
    return recorder.episode()


def expert_action(env: envs.PixelEnv) -> np.ndarray:
    """What the scripted expert of the task does now: float32 (A,) in [-1, 1]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the experts of Meta-world warn whenever they exceed [-1, 1]
        return env.simulator.expert_action(env.action_repeat)  # type: ignore[attr-defined]


def succeeded(episode: Episode) -> bool:
    """Whether an episode contains a success."""
    return episode.successes is not None and bool(episode.successes.any())


def begin_of(episode: Episode, decisions: int) -> Episode:
    """Its first so many decisions, or all of it if it has no more."""
    if decisions >= len(episode.actions):
        return episode
    return episode._replace(
        frames=episode.frames[: episode.prefix + decisions + 1],
        actions=episode.actions[:decisions],
        rewards=episode.rewards[:decisions],
        successes=None if episode.successes is None else episode.successes[:decisions],
        terminated=False,
    )


def collect_demonstrations(task: str, episodes: int, seed: int, **make_keywords: Any) -> list[Episode]:
    """Let the scripted expert of a task play until `episodes` episodes with a success are there.

    An episode does not stop at success, and an expert's action is held for a whole decision as an agent's is. The
    result depends on the arguments alone. The paper's protocol puts five demonstrations into the replay buffer of every
    method (iVideoGPT, App. A.5).

    Args:
        seed: begins the stream of reset seeds, from which the goals follow.
        make_keywords: passed on to `envs.make`.
    Raises:
        envs.NoExpert: the task has none (the DM Control suite never has).
        envs.ExpertFailed: fewer than one episode in ten contains a success.
    """
    if not envs.has_expert(envs.canonical(task)):
        raise envs.NoExpert(f"{task!r} has no scripted expert: set demonstrations=0")
    env = envs.make(task, seed, **make_keywords)
    try:
        kept: list[Episode] = []
        attempts = episodes * ATTEMPTS
        for _ in range(attempts):
            if len(kept) == episodes:
                break
            episode = record(env, lambda obs: expert_action(env))
            if succeeded(episode):
                kept.append(episode)
    finally:
        env.close()
    if len(kept) < episodes:
        raise envs.ExpertFailed(
            f"the scripted expert of {task!r} succeeded in {len(kept)} of {attempts} episodes, "
            f"{episodes} demonstrations were asked for: ask for fewer, or set demonstrations=0"
        )
    return kept


class Collector:
    """Acting for training, one decision at a time."""

    def __init__(self, env: envs.PixelEnv, run: Run, replay: ReplayBuffer) -> None:
        self.env, self.replay = env, replay
        self.frame = 0
        self.stored = 0  # episodes on disk, demonstrations included
        self._run, self._store = run, EpisodeStore(run.folder / "replay")
        self._played = 0  # training episodes
        self._recorder = EpisodeRecorder(env)

    @property
    def decision(self) -> int:
        """Decisions taken so far."""
        return self.frame // self.env.action_repeat

    @property
    def between_episodes(self) -> bool:
        return self._recorder.over

    @property
    def demonstrations(self) -> int:
        """How many of the episodes on disk were demonstrated; they are the first."""
        return self.stored - self._played

    def add(self, episode: Episode) -> None:
        """Keep an episode, on disk and in the replay buffer."""
        self._store.save(self.stored, episode)
        self.stored += 1
        self.replay.add(episode)

    def act(self, agent: Agent) -> Episode | None:
        """One decision of `agent`, exploring; the episode that ended with it."""
        recorder = self._recorder
        if recorder.over:
            recorder.begin(stream_seed(self._run.settings.seed, "episode", self._played))
            agent.begin_episode(eval_mode=False)
        obs = torch.from_numpy(recorder.obs)[None]
        recorder.step(agent.act(obs, self.decision, eval_mode=False)[0].float().cpu().numpy())
        self.frame += self.env.action_repeat
        if not recorder.over:
            return None
        episode = recorder.episode()
        self.add(episode)
        assert episode.successes is not None
        self._run.log_episode(self.frame, self._played, float(episode.rewards.sum()), float(episode.successes.max()))
        self._played += 1
        return episode

    def state(self) -> dict[str, int]:
        """The counters; an episode under way is not among them."""
        return {"frame": self.frame, "stored": self.stored, "played": self._played}

    def load_state(self, state: dict[str, int]) -> None:
        """Counters back, later episodes off the disk, the rest into the replay buffer."""
        self.frame, self.stored, self._played = state["frame"], state["stored"], state["played"]
        self._store.truncate(self.stored)
        for episode in self._store.load(range(self.stored)):
            self.replay.add(episode)

    def stored_episodes(self, first: int, end: int) -> Iterator[Episode]:
        """Episodes on disk, from number `first` up to `end`; the demonstrations come first."""
        return self._store.load(range(first, end))

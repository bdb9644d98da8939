"""Acting: the training environment, played one decision at a time.

A finished episode is written to disk and enters the replay buffer whole. Every episode begins from a seed of its own
(`stream_seed(seed, "episode", index)`), so a run that continues at the end of an episode needs nothing else of the
environment. `frame` is the public clock: simulator frames of training, evaluation not counted.
"""

import numpy as np
import torch

import envs
from agents import Agent
from mbrl.episodes import EpisodeStore
from mbrl.replay import Episode, ReplayBuffer
from mbrl.run import Run, stream_seed


class Collector:
    def __init__(self, env: envs.PixelEnv, run: Run, replay: ReplayBuffer) -> None:
        self.env, self.replay = env, replay
        self.frame = 0
        self.stored = 0  # episodes on disk, demonstrations included
        self._run, self._store = run, EpisodeStore(run.folder / "replay")
        self._played = 0  # training episodes
        self._obs: np.ndarray | None = None
        self._frames: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._successes: list[float] = []
        self._seed = 0  # of the simulator, in the episode under way

    @property
    def decision(self) -> int:
        """Decisions taken so far."""
        return self.frame // self.env.action_repeat

    @property
    def between_episodes(self) -> bool:
        return self._obs is None

    def add(self, episode: Episode) -> None:
        """Keep an episode, on disk and in the replay buffer."""
        self._store.save(self.stored, episode)
        self.stored += 1
        self.replay.add(episode)

    def act(self, agent: Agent) -> None:
        """One decision of `agent`, exploring."""
        if self._obs is None:
            self._obs, info = self.env.reset(seed=stream_seed(self._run.settings.seed, "episode", self._played))
            self._seed = info["seed"]
            self._frames, self._actions, self._rewards, self._successes = [self._obs[-3:]], [], [], []
            agent.begin_episode(eval_mode=False)
        action = agent.act(torch.from_numpy(self._obs)[None], self.decision, eval_mode=False)[0].float().cpu().numpy()
        self._obs, reward, terminated, truncated, info = self.env.step(action)
        self._frames.append(self._obs[-3:])
        self._actions.append(action)
        self._rewards.append(reward)
        self._successes.append(info["success"])
        self.frame += self.env.action_repeat
        if terminated or truncated:
            self._finish(terminated)

    def _finish(self, terminated: bool) -> None:
        rewards = np.asarray(self._rewards, np.float32)
        successes = np.asarray(self._successes, np.float32)
        actions = np.stack(self._actions).astype(np.float32)
        self.add(Episode(np.stack(self._frames), actions, rewards, terminated, successes=successes, seed=self._seed))
        self._run.log_episode(self.frame, self._played, float(rewards.sum()), float(successes.max()))
        self._played += 1
        self._obs = None

    def state(self) -> dict[str, int]:
        """The counters; an episode under way is not among them."""
        return {"frame": self.frame, "stored": self.stored, "played": self._played}

    def load_state(self, state: dict[str, int]) -> None:
        """Counters back, later episodes off the disk, the rest into the replay buffer."""
        self.frame, self.stored, self._played = state["frame"], state["stored"], state["played"]
        self._store.truncate(self.stored)
        for episode in self._store.load(range(self.stored)):
            self.replay.add(episode)

    def stored_episodes(self, count: int) -> list[Episode]:
        """The first `count` episodes on disk: the demonstrations."""
        return list(self._store.load(range(count)))

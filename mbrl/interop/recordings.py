"""Recorded episodes of a folder: a run's replay, other files of episodes, or what `make data` wrote."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mbrl.experiment.episodes import episode_files, read_episodes
from world_model.api import Episode
from world_model.data import ClipDataset, shard_names
from world_model.schema import UserError


class Recordings:
    """Episodes that are read when they are asked for; a damaged one is named in a warning and left out.

    Args:
        folder: a run's folder, or one that holds episodes.
    Raises:
        UserError: it holds none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "replay" if (folder / "replay").is_dir() else folder
        self._files = episode_files(self.folder)
        self._shards = ClipDataset(self.folder) if not self._files and shard_names(self.folder) else None
        if not len(self):
            raise UserError(f"{self.folder} holds no recorded episodes")

    def __len__(self) -> int:
        return self._shards.num_episodes if self._shards else len(self._files)

    def __iter__(self) -> Iterator[Episode]:
        if self._shards:
            yield from map(self._shards.episode, range(len(self)))
        else:
            yield from map(_alone, read_episodes(self._files))

    def draw(self, generator: np.random.Generator) -> Episode:
        """One of them, all equally often. Raises UserError if none can be read any more."""
        if self._shards:
            return self._shards.episode(int(generator.integers(len(self))))
        while self._files:
            path = self._files[int(generator.integers(len(self._files)))]
            for episode in read_episodes([path]):
                return _alone(episode)
            self._files.remove(path)
        raise UserError(f"{self.folder} holds no episode that can be read")


def _alone(episode: Episode) -> Episode:
    frames = episode.frames[episode.prefix :]
    return Episode(frames, episode.actions, episode.rewards, successes=episode.successes, seed=episode.seed)

"""Episodes on disk: one compressed file each, written so that a crash can only lose the one being written.

    replay/000000.npz, 000001.npz, ...      the fields of `mbrl.replay.Episode`, without those that are None

The numbers count the episodes of a run. A checkpoint only remembers how many there were; on resume the files
that came after it are removed with `truncate` and the others are loaded into the replay buffer again.
"""

from __future__ import annotations

import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from world_model import Episode
from world_model.files import READ_ERRORS, reason, regular

NAME = re.compile(r"[0-9]{6,18}")


class EpisodeStoreError(RuntimeError):
    """An episode that could not be written."""


class EpisodeStore:
    """The episode files of one run.

    Args:
        folder: made if it is missing. Half-written files of an earlier crash are removed from it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()

    def path(self, index: int) -> Path:
        """The file of episode `index`."""
        return self.folder / f"{index:06d}.npz"

    def indices(self) -> list[int]:
        """Numbers of the episodes on disk, in order."""
        return [int(path.stem) for path in episode_files(self.folder)]

    def save(self, index: int, episode: Episode) -> None:
        """Writes an episode; when this returns, the file is whole and on the disk.

        Raises:
            EpisodeStoreError: the disk is full or cannot be written; nothing is left behind.
        """
        path = self.path(index)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with temporary.open("wb") as file:
                fields = {name: value for name, value in episode._asdict().items() if value is not None}
                np.savez_compressed(file, **fields)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
            sync_folder(self.folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise EpisodeStoreError(
                f"cannot write episode {path}: {reason(error)}; make room on that disk, or let it be written, "
                "and run the same command again"
            ) from error

    def load(self, indices: Iterable[int]) -> Iterator[Episode]:
        """Reads episodes in the order given; one missing or damaged is named in a warning and skipped."""
        yield from read_episodes(map(self.path, indices))

    def truncate(self, count: int) -> None:
        """Removes every episode whose number is `count` or more."""
        for index in self.indices():
            if index >= count:
                self.path(index).unlink()
        sync_folder(self.folder)


def episode_files(folder: Path) -> list[Path]:
    """The files of a folder that are named like episodes, in order."""
    return sorted((path for path in folder.glob("*.npz") if NAME.fullmatch(path.stem)), key=lambda path: int(path.stem))


def read_episodes(paths: Iterable[Path]) -> Iterator[Episode]:
    """Reads episodes in the order given; one missing or damaged is named in a warning and skipped."""
    for path in paths:
        try:
            yield _read(path)
        except READ_ERRORS as error:
            warnings.warn(f"skipping damaged episode {path}: {reason(error)}", stacklevel=2)


def _read(path: Path) -> Episode:
    """One episode as it was saved; raises one of READ_ERRORS where a byte of it has changed."""
    content = regular(path).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        # The number of files, in the end record, is nothing that zipfile looks at: behind a changed length it would not
        # miss the last ones, which older episodes do not have.
        if len(archive.namelist()) != int.from_bytes(content[-12:-10], "little"):
            raise ValueError("its list of parts has changed")
        # Whole files: zipfile compares a checksum only at the end, and np.load reads as far as a header tells it to.
        files = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    if not files.keys() <= set(Episode._fields):
        raise ValueError(f"it holds {', '.join(files.keys() - set(Episode._fields))}, which is no part of an episode")
    arrays = {name: np.load(io.BytesIO(stored), allow_pickle=False) for name, stored in files.items()}
    episode = Episode(
        frames=arrays["frames"],
        actions=arrays["actions"],
        rewards=arrays["rewards"],
        terminated=bool(arrays["terminated"]),
        prefix=int(arrays["prefix"]),
        # Runs that began before these were recorded have neither.
        successes=arrays["successes"] if "successes" in arrays else None,
        seed=int(arrays["seed"]) if "seed" in arrays else None,
    )
    decisions = len(episode.actions)
    per_decision = [episode.rewards] if episode.successes is None else [episode.rewards, episode.successes]
    if len(episode.frames) != episode.prefix + decisions + 1 or any(len(x) != decisions for x in per_decision):
        raise ValueError("its frames, actions, rewards and successes do not belong together")
    return episode


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

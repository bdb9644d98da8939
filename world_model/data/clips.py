"""The training format: shards of uint8 frames that are mapped into memory, never decoded.

    data/metaworld/
        hammer-000.npy      uint8 (N, 3, H, W), the frames of its episodes one behind the other
        hammer-000.npz      lengths (E,), actions (N, A), rewards (N,), successes (N,), seeds (E,), dataset; written
                            last: a shard without it is not there

Shards are written independently, so a source can be recorded in parallel and taken up again. A dataset opens any number
of them and draws windows of consecutive frames, each gathered from the mapped files when it is asked for.

Letters: N frames of a shard, E its episodes, B batch, T frames of a window, A action.
"""

import functools
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from world_model.api import Clips, Episode
from world_model.files import reading, regular

MAPPED = 256  # shards that are mapped at a time: each is an open file, and of those there are not many


class DataError(ValueError):
    """A dataset that is missing, damaged, or too short for what is asked of it."""


def goal_first(*fields: Tensor) -> tuple[Tensor, ...]:
    """Clips ordered (o_T, o_1, ..., o_{T-1}) for goal-conditioned prediction: (B, T, ...) each.

    Where the context is two frames or more, actions and rewards that are re-ordered in the same way still lead from
    each future frame to the next (iVideoGPT, arXiv 2405.15223).
    """
    return tuple(field.roll(1, dims=1) for field in fields)


def shard_names(folder: str | Path) -> set[str]:
    """The shards of a folder that are complete."""
    return {path.stem for path in Path(folder).glob("*.npz") if not path.name.startswith(".")}


def write_shard(folder: str | Path, name: str, episodes: Sequence[Episode], dataset: str) -> None:
    """Write `episodes` as shard `name`; when this returns, it is whole and on the disk."""
    folder = Path(folder)
    frames = np.concatenate([episode.frames for episode in episodes])
    # The frame that ends an episode has no action and no reward: zeros keep one index for all three.
    actions = np.concatenate([np.pad(episode.actions, ((0, 1), (0, 0))) for episode in episodes])
    rewards = np.concatenate([np.pad(episode.rewards, (0, 1)) for episode in episodes])
    successes = np.concatenate([np.pad(_successes(episode), (0, 1)) for episode in episodes])
    lengths = np.array([len(episode.frames) for episode in episodes])
    seeds = np.array([-1 if episode.seed is None else episode.seed for episode in episodes])  # of the simulator's reset
    for suffix in (".npy", ".npz"):
        temporary = folder / f".{name}{suffix}"
        with temporary.open("wb") as file:
            if suffix == ".npy":
                np.save(file, frames)
            else:
                fields = {"lengths": lengths, "actions": actions, "rewards": rewards, "successes": successes}
                np.savez(file, seeds=seeds, dataset=np.array(dataset), **fields)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(folder / f"{name}{suffix}")


def _successes(episode: Episode) -> np.ndarray:
    """(T,), NaN where they are unknown: batches of several sources stay rectangular."""
    if episode.successes is None:
        return np.full(len(episode.rewards), np.nan, np.float32)
    return episode.successes


def _held_out(name: str, episodes: int, every: int) -> set[int]:
    """Which episodes of a shard are held out. By the shard alone, so that shards added later leak nothing."""
    if not every:
        return set()
    if episodes >= every:
        return set(range(every - 1, episodes, every))
    # Of smaller shards so many give one episode that it is the same share of all.
    return {episodes - 1} if zlib.crc32(name.encode()) % every < episodes else set()


class ClipDataset:
    """All episodes of some shards, or a part of them.

    Args:
        folder: where the shards lie.
        part: "train", "held_out" (one in `held_out_every` episodes) or "all".
        held_out_every: 0 holds nothing out.
        weights: how often clips of each dataset of a mixture are drawn, by its name; others are never drawn. None draws
            every window equally often.
    Raises:
        DataError: there is no shard, one is damaged, they do not belong together, or nothing has a weight.
    """

    def __init__(
        self,
        folder: str | Path,
        part: str = "all",
        held_out_every: int = 20,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._datasets: list[str] = []  # of each shard
        self._paths: list[Path] = []
        self._map = functools.lru_cache(MAPPED)(lambda shard: np.load(self._paths[shard], mmap_mode="r"))
        self._cumulative: dict[int, np.ndarray] = {}  # of a mixture: chances of the episodes, by length
        self._actions: list[np.ndarray] = []
        self._rewards: list[np.ndarray] = []
        self._successes: list[np.ndarray] = []
        episodes: list[tuple[int, int, int]] = []  # shard, first frame, frames
        seeds: list[int] = []  # -1 where it is unknown
        for name in sorted(shard_names(folder)):
            lengths, of_shard = self._open(name)
            firsts = np.cumsum(lengths) - lengths
            held_out = _held_out(name, len(lengths), held_out_every)
            for i, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
                if part == "all" or (i in held_out) == (part == "held_out"):
                    episodes.append((len(self._paths) - 1, int(first), int(length)))
                    seeds.append(int(of_shard[i]))
        if not episodes and self._paths:
            raise DataError(f"{folder} has too few episodes for a {part} part; part=all takes what there is")
        if not episodes:
            raise DataError(f"{folder} holds no {'' if part == 'all' else part + ' '}episodes; make data fills it")
        self._episodes, self._seeds = np.array(episodes), np.array(seeds)  # (E, 3), (E,)
        self._weights = weights
        if weights is not None and not any(weights.get(name, 0) for name in self._datasets):
            raise DataError(f"{folder} holds {', '.join(sorted(set(self._datasets)))}: none is in the mixture")

    def _open(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Map shard `name`; the lengths and the seeds of its episodes."""
        path = self.folder / f"{name}.npz"
        with reading(path, DataError, "remove it and make data again"):
            frames = np.load(regular(path.with_suffix(".npy")), mmap_mode="r", allow_pickle=False)
            with np.load(regular(path), allow_pickle=False) as index:
                lengths, actions, rewards = index["lengths"], index["actions"], index["rewards"]
                dataset = str(index["dataset"])
                # Shards from before there were successes and seeds have none.
                unknown = np.full(len(rewards), np.nan, np.float32)
                successes = index["successes"] if "successes" in index else unknown
                seeds = index["seeds"] if "seeds" in index else np.full(len(lengths), -1)
            if not len(frames) == len(actions) == len(rewards) == len(successes) == lengths.sum():
                raise ValueError("its parts differ in length")
            kinds = [(x.ndim, x.dtype.kind) for x in (frames, actions, rewards, successes, lengths, seeds)]
            known = [(4, "u"), (2, "f"), (1, "f"), (1, "f"), (1, "i"), (1, "i")]
            if kinds != known or lengths.min(initial=1) < 1 or len(seeds) != len(lengths):
                raise ValueError("its parts are not those of a shard")
        if self._paths and frames.shape[1:] != self.frame_shape:
            raise DataError(f"shard {path} has frames {frames.shape[1:]}, others {self.frame_shape}")
        if self._actions and actions.shape[1:] != self._actions[0].shape[1:]:
            raise DataError(f"shard {path} has actions {actions.shape[1:]}, others {self._actions[0].shape[1:]}")
        self._paths.append(path.with_suffix(".npy"))
        self._actions.append(actions)
        self._rewards.append(rewards)
        self._successes.append(successes)
        self._datasets.append(dataset)
        return lengths, seeds

    def keep(self, count: int, generator: np.random.Generator) -> None:
        """Forget all but `count` episodes, drawn at random; of equal generators a smaller count is part of a larger.

        Raises:
            DataError: there are not so many.
        """
        if count > self.num_episodes:
            raise DataError(f"{self.folder} has {self.num_episodes} episodes to learn from, not {count}")
        kept = np.sort(generator.permutation(self.num_episodes)[:count])
        self._episodes, self._seeds = self._episodes[kept], self._seeds[kept]
        self._cumulative.clear()

    @property
    def num_episodes(self) -> int:
        return len(self._episodes)

    @property
    def lengths(self) -> np.ndarray:
        """Frames of each episode, (E,)."""
        return self._episodes[:, 2]

    @property
    def num_frames(self) -> int:
        return int(self._episodes[:, 2].sum())

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(3, H, W)"""
        return self._map(0).shape[1:]

    @property
    def action_dim(self) -> int:
        return self._actions[0].shape[1]

    def episode(self, index: int) -> Episode:
        """A copy of one whole episode; its successes are NaN where they are unknown."""
        shard, first, length = self._episodes[index].tolist()
        last = first + length - 1
        steps = (field[shard][first:last].copy() for field in (self._actions, self._rewards, self._successes))
        actions, rewards, successes = steps
        frames, seed = np.array(self._map(shard)[first : last + 1]), int(self._seeds[index])
        return Episode(frames, actions, rewards, successes=successes, seed=None if seed < 0 else seed)

    def _by_weight(self, length: int) -> np.ndarray:
        """(E,): up to each episode, the chance that it or one before it is drawn, of those that are long enough."""
        if length not in self._cumulative:
            assert self._weights is not None
            names, fits = np.array(self._datasets)[self._episodes[:, 0]], self.lengths >= length
            chances = np.zeros(len(names))
            for name, weight in self._weights.items():
                if (members := fits & (names == name)).any():
                    chances[members] = weight / members.sum()
            if not chances.any():
                raise DataError(f"no episode of {self.folder} that is in the mixture has {length} frames")
            ends = np.cumsum(chances)
            self._cumulative[length] = ends / ends[-1]  # exactly one at the end
        return self._cumulative[length]

    def sample(self, batch_size: int, length: int, generator: np.random.Generator) -> Clips:
        """The windows that `draw` gives."""
        return self.windows(*self.draw(batch_size, length, generator), length)

    def draw(self, batch_size: int, length: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Windows of `length` frames, uniform over all that fit an episode, with repetition: episodes and starts (B,).

        In a mixture a dataset is drawn by its weight, one of its episodes, and a window of that.

        Raises:
            DataError: no episode is long enough.
        """
        windows = np.maximum(self._episodes[:, 2] - length + 1, 0)
        ends = np.cumsum(windows)
        if not ends[-1]:
            raise DataError(f"no episode of {self.folder} has {length} frames (longest: {self._episodes[:, 2].max()})")
        if self._weights is None:
            drawn = generator.integers(ends[-1], size=batch_size)
            episode = np.searchsorted(ends, drawn, side="right")
            start = drawn - (ends - windows)[episode]
        else:
            episode = np.searchsorted(self._by_weight(length), generator.random(batch_size), side="right")
            start = generator.integers(windows[episode])
        return episode, start

    def windows(self, episodes: np.ndarray, starts: np.ndarray, length: int) -> Clips:
        """The window of `length` frames of each of `episodes` (B,) that begins at its frame `starts` (B,)."""
        places = [
            (shard, slice(first + offset, first + offset + length))
            for (shard, first, _), offset in zip(self._episodes[episodes].tolist(), starts.tolist(), strict=True)
        ]
        steps = (self._actions, self._rewards, self._successes)
        return Clips(
            torch.from_numpy(np.stack([self._map(shard)[window] for shard, window in places])),
            *(torch.from_numpy(np.stack([field[shard][window] for shard, window in places])) for field in steps),
        )

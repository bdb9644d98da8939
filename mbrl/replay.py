"""Replay: a ring of whole episodes that stores every image once.

`agents/api.py` draws how frames, actions and rewards are numbered. Episodes lie one behind the other in a
ring of preallocated arrays, the oldest are dropped whole, and every sample is one vectorised gather whose
cost does not depend on how much is held. Both buffers of MBPO are this class: the real one (long episodes)
and the imagined one (short rollouts that begin with a full frame stack).

Letters: B batch, K frame stack, T decisions of an episode, P prefix frames, C H W one frame, A action.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents import StreamBatch, TransitionBatch
from world_model import Clips, Episode, Origin


class ReplayError(ValueError):
    """An episode that does not fit the buffer, or a sample that the buffer cannot give."""


class Starts(NamedTuple):
    """Where dreams begin."""

    frames: Tensor  # uint8 (B, K, C, H, W), stacks, oldest first
    origins: list[Origin] | None  # of each; None where the seed of an episode was not recorded


class _Queue:
    """First in, first out, over a fixed array; any place can be read. Holds slots of the ring."""

    def __init__(self, capacity: int) -> None:
        self._slots = np.zeros(capacity, np.int64)
        self._first, self._count = 0, 0

    def __len__(self) -> int:
        return self._count

    def push(self, slots: np.ndarray) -> None:
        assert self._count + len(slots) <= len(self._slots)
        places = (self._first + self._count + np.arange(len(slots))) % len(self._slots)
        self._slots[places] = slots
        self._count += len(slots)

    def drop(self, count: int) -> None:
        self._first = (self._first + count) % len(self._slots)
        self._count -= count

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """`count` slots, uniformly and with repetition."""
        places = (self._first + generator.integers(self._count, size=count)) % len(self._slots)
        return self._slots[places]


class _Span(NamedTuple):
    """Where an episode lies: its first slot, its prefix and its decisions."""

    slot: int
    prefix: int
    decisions: int

    @property
    def frames(self) -> int:
        return self.prefix + self.decisions + 1


class ReplayBuffer:
    """A window over the newest episodes.

    Args:
        capacity: decisions held at most.
        frame_shape: (C, H, W) of one frame.
        action_dim: A.
        frame_stack: K, frames in an observation.
        nstep: n of the n-step return.
        discount: gamma.
        seed: of the sampling.
        episode_decisions: length of the episodes that the ring is sized for. An episode stores up to K frames
            more than it has decisions, so many short ones need more room than a few long ones. Others work
            too; then the ring may hold less than `capacity` decisions, but never takes more memory.
        memory_limit_bytes: frames that need more than this live in a memory-mapped file under `scratch`.
        scratch: an existing folder for that file, which vanishes with the process however that ends.

    Raises:
        ReplayError: the memory-mapped file finds no room, or `scratch` is missing.
    """

    def __init__(
        self,
        capacity: int,
        frame_shape: tuple[int, int, int],
        action_dim: int,
        *,
        frame_stack: int,
        nstep: int,
        discount: float,
        seed: int,
        episode_decisions: int = 100,
        memory_limit_bytes: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.capacity, self.frame_stack = capacity, frame_stack
        self._discounts = discount ** np.arange(nstep + 1, dtype=np.float64)
        self._generator = np.random.default_rng(seed)

        self.num_slots = capacity + frame_stack * -(-capacity // episode_decisions)
        self._frames = _allocate((self.num_slots, *frame_shape), memory_limit_bytes, scratch)
        self._actions = np.zeros((self.num_slots, action_dim), np.float32)
        self._rewards = np.zeros(self.num_slots, np.float32)
        self._successes = np.full(self.num_slots, np.nan, np.float32)
        # Per slot: frames of its episode before it, decisions from it to the end, whether it terminated.
        self._before = np.zeros(self.num_slots, np.int32)
        self._remaining = np.zeros(self.num_slots, np.int32)
        self._terminated = np.zeros(self.num_slots, bool)
        self._seeds = np.full(self.num_slots, -1, np.int64)  # of the simulator's reset; -1 where it is not known
        self._clear()

    def _clear(self) -> None:
        self.frames_added = 0  # ever, with those dropped again
        self._episodes: deque[_Span] = deque()
        self._next_slot, self._used_slots = 0, 0
        # Starts of the windows of a given number of frames. Two frames are one decision, so [2] is all
        # decisions; other lengths appear when they are first asked for.
        self._starts: dict[int, _Queue] = {2: _Queue(self.capacity)}

    def __len__(self) -> int:
        """Decisions held."""
        return len(self._starts[2])

    @property
    def num_episodes(self) -> int:
        """Episodes held."""
        return len(self._episodes)

    @property
    def num_frames(self) -> int:
        """Frames held: the steps of the stream."""
        return self._used_slots

    @property
    def nbytes(self) -> int:
        """Memory that the frames take, full or not."""
        return self._frames.nbytes

    def add(self, episode: Episode) -> None:
        """Stores an episode and drops the oldest ones that have to make room.

        Raises:
            ReplayError: shapes, types or values are wrong, or the episode alone is larger than the buffer.
        """
        self._check(episode)
        decisions, num_frames = len(episode.actions), len(episode.frames)
        while len(self) + decisions > self.capacity or self._used_slots + num_frames > self.num_slots:
            self._evict()

        slots = (self._next_slot + np.arange(num_frames)) % self.num_slots
        deciding = slots[episode.prefix : -1]
        self._frames[slots] = episode.frames
        self._actions[slots], self._rewards[slots], self._successes[slots] = 0.0, 0.0, np.nan
        self._actions[deciding], self._rewards[deciding] = episode.actions, episode.rewards
        if episode.successes is not None:
            self._successes[deciding] = episode.successes
        self._before[slots] = np.arange(num_frames)
        self._remaining[slots] = np.arange(num_frames)[::-1]
        self._terminated[slots] = episode.terminated
        self._seeds[slots] = -1 if episode.seed is None else episode.seed

        span = _Span(self._next_slot, episode.prefix, decisions)
        self._episodes.append(span)
        self._next_slot = (self._next_slot + num_frames) % self.num_slots
        self._used_slots += num_frames
        self.frames_added += num_frames
        for length, queue in self._starts.items():
            queue.push(self._window_starts(span, length))

    def _check(self, episode: Episode) -> None:
        decisions = len(episode.actions)
        successes = [] if episode.successes is None else [("successes", np.float32, (decisions,))]
        expected = (
            ("frames", np.uint8, (episode.prefix + decisions + 1, *self._frames.shape[1:])),
            ("actions", np.float32, (decisions, self._actions.shape[1])),
            ("rewards", np.float32, (decisions,)),
            *successes,
        )
        for name, dtype, shape in expected:
            value = getattr(episode, name)
            if value.dtype != dtype or value.shape != shape:
                raise ReplayError(
                    f"episode's {name} are {value.dtype} {value.shape}, expected {np.dtype(dtype)} {shape}"
                )
        if not (np.isfinite(episode.actions).all() and np.isfinite(episode.rewards).all()):
            raise ReplayError("episode holds an action or a reward that is not finite")
        if decisions < 1:
            raise ReplayError("episode has no decision")
        if decisions > self.capacity or len(episode.frames) > self.num_slots:
            raise ReplayError(
                f"episode of {decisions} decisions does not fit a buffer of {self.capacity}: make it larger"
            )

    def _evict(self) -> None:
        span = self._episodes.popleft()
        self._used_slots -= span.frames
        for length, queue in self._starts.items():
            queue.drop(max(0, span.decisions + 2 - length))

    def _window_starts(self, span: _Span, length: int) -> np.ndarray:
        count = max(0, span.decisions + 2 - length)  # windows of `length` among T + 1 frames
        return (span.slot + span.prefix + np.arange(count)) % self.num_slots

    def sample(self, batch_size: int) -> TransitionBatch:
        """n-step transitions, uniform over every decision held, the last ones of an episode included.

        Near the end of an episode the sum is cut there and the value is taken from the final frame.

        Raises:
            ReplayError: the buffer is empty.
        """
        slots = self._draw(batch_size, length=2)
        nstep = len(self._discounts) - 1
        remaining = self._remaining[slots]  # (B,)
        steps = np.minimum(nstep, remaining)
        ahead = np.arange(nstep)
        rewards = self._rewards[(slots[:, None] + ahead) % self.num_slots]  # (B, n)
        returns = np.where(ahead < steps[:, None], rewards, 0.0) @ self._discounts[:-1]  # (B,)
        over = self._terminated[slots] & (steps == remaining)
        discounts = np.where(over, 0.0, self._discounts[steps])
        return TransitionBatch(
            obs=self._stacks(slots).flatten(1, 2),
            action=torch.from_numpy(self._actions[slots]),
            reward=torch.from_numpy(returns.astype(np.float32)[:, None]),
            discount=torch.from_numpy(discounts.astype(np.float32)[:, None]),
            next_obs=self._stacks((slots + steps) % self.num_slots).flatten(1, 2),
        )

    def sample_segments(self, batch_size: int, length: int) -> Clips:
        """Windows of `length` frames, uniform over all that fit an episode (prefix frames are not used).

        A window may end with the final frame of its episode.

        Raises:
            ReplayError: no episode held is long enough, or `length` is below 2.
        """
        slots = (self._draw(batch_size, length)[:, None] + np.arange(length)) % self.num_slots  # (B, length)
        return Clips(
            frames=self._gather(slots),
            actions=torch.from_numpy(self._actions[slots]),
            rewards=torch.from_numpy(self._rewards[slots]),
            successes=torch.from_numpy(self._successes[slots]),
            continues=torch.from_numpy((~self._terminated[slots] | (self._remaining[slots] > 1)).astype(np.float32)),
        )

    def sample_stream(self, batch_size: int, length: int, newest: Sequence[int] = ()) -> StreamBatch:
        """Windows of `length` steps of the stream of all episodes held, end to end (drawn in `agents/api.py`).

        The first windows begin `newest` steps before the stream's end, the others anywhere, uniformly. For episodes
        without prefix frames.

        Raises:
            ReplayError: fewer steps are held than a window has.
        """
        if length > self.num_frames:
            raise ReplayError(f"a window has {length} steps, but the buffer holds {self.num_frames}")
        drawn = self._generator.integers(length, self.num_frames + 1, size=batch_size - len(newest))
        starts = self._next_slot - np.concatenate([np.asarray(newest, np.int64), drawn])
        slots = (starts[:, None] + np.arange(length)) % self.num_slots  # (B, length)
        is_last = self._remaining[slots] == 0
        return StreamBatch(
            frames=self._gather(slots),
            actions=torch.from_numpy(self._actions[slots]),
            rewards=torch.from_numpy(self._rewards[slots]),
            is_first=torch.from_numpy(self._before[slots] == 0),
            is_last=torch.from_numpy(is_last),
            is_terminal=torch.from_numpy(is_last & self._terminated[slots]),
            slots=torch.from_numpy(slots),
        )

    def sample_starts(self, batch_size: int) -> Starts:
        """Decisions drawn uniformly, for dreams to begin at.

        Raises:
            ReplayError: the buffer is empty.
        """
        slots = self._draw(batch_size, length=2)
        known = (self._seeds[slots] >= 0).all()
        return Starts(self._stacks(slots), [self._origin(slot) for slot in slots] if known else None)

    def _origin(self, slot: int) -> Origin:
        """Of the decision at `slot`, in an episode without prefix frames."""
        decision, remaining = int(self._before[slot]), int(self._remaining[slot])
        actions = self._actions[(slot - decision + np.arange(decision + remaining)) % self.num_slots]
        return Origin(int(self._seeds[slot]), actions, decision)

    def _draw(self, batch_size: int, length: int) -> np.ndarray:
        if length < 2:
            raise ReplayError(f"a segment has at least 2 frames, not {length}")
        if length not in self._starts:
            self._starts[length] = _Queue(self.capacity)
            for span in self._episodes:
                self._starts[length].push(self._window_starts(span, length))
        if not len(self._starts[length]):
            longest = max((span.decisions + 1 for span in self._episodes), default=0)
            raise ReplayError(f"no episode holds {length} frames (the longest of the buffer holds {longest})")
        return self._starts[length].draw(batch_size, self._generator)

    def _stacks(self, slots: np.ndarray) -> Tensor:
        """Frame stacks (B, K, C, H, W) that end at `slots` (B,), padded with the episode's first frame."""
        back = np.minimum(np.arange(self.frame_stack)[::-1], self._before[slots][:, None])  # (B, K)
        return self._gather((slots[:, None] - back) % self.num_slots)

    def _gather(self, slots: np.ndarray) -> Tensor:
        """Frames at `slots` of any shape: (*slots.shape, C, H, W)."""
        rows = torch.from_numpy(self._frames).index_select(0, torch.from_numpy(slots.ravel()))  # on all threads
        return rows.unflatten(0, slots.shape)

    def episodes(self) -> Iterator[Episode]:
        """Copies of the episodes held, oldest first."""
        for span in self._episodes:
            slots = (span.slot + np.arange(span.frames)) % self.num_slots
            deciding = slots[span.prefix : -1]
            yield Episode(
                frames=self._frames[slots],
                actions=self._actions[deciding],
                rewards=self._rewards[deciding],
                terminated=bool(self._terminated[span.slot]),
                prefix=span.prefix,
                successes=None if np.isnan(self._successes[deciding]).any() else self._successes[deciding],
                seed=None if self._seeds[span.slot] < 0 else int(self._seeds[span.slot]),
            )

    def state_dict(self, with_episodes: bool) -> dict[str, Any]:
        """The random state and, `with_episodes`, everything held; survives a `weights_only` load.

        What a sample returns depends on the episodes held, in their order, and on the random state only, so a
        buffer that is filled again with the same episodes and given this state continues bit for bit.
        """
        state: dict[str, Any] = {"generator": self._generator.bit_generator.state}
        if with_episodes:
            state["episodes"] = [
                {k: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for k, x in episode._asdict().items()}
                for episode in self.episodes()
            ]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned; episodes in it replace those held.

        Raises:
            ReplayError: the episodes are of other sizes than this buffer's.
        """
        if "episodes" in state:
            self._clear()
            for saved in state["episodes"]:
                arrays: dict[str, Any] = {k: x.numpy() if isinstance(x, Tensor) else x for k, x in saved.items()}
                self.add(Episode(**arrays))
        self._generator.bit_generator.state = state["generator"]


def _allocate(shape: tuple[int, ...], memory_limit_bytes: int | None, scratch: Path | None) -> np.ndarray:
    """Zeroed uint8 array in memory or, above the limit, in a file without a name under `scratch`."""
    size = int(np.prod(shape, dtype=np.int64))
    if memory_limit_bytes is None or size <= memory_limit_bytes:
        return np.zeros(shape, np.uint8)
    if scratch is None:
        raise ReplayError(f"{size / 1e9:.1f} GB of replay frames exceed the memory limit and no scratch is given")
    try:
        with tempfile.TemporaryFile(dir=scratch) as file:
            # Reserved now: a disk that fills up later would kill the process without a word (SIGBUS).
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.asarray(np.memmap(file, np.uint8, mode="w+", shape=shape))
    except OSError as error:
        raise ReplayError(
            f"no room for {size / 1e9:.1f} GB of frames in {scratch} ({error.strerror}): free some, or lower "
            " replay_buffer_frames, or raise replay_memory_gb"
        ) from error

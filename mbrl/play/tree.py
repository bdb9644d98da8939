"""The moments of a drive: a tree, since one can go back to any of them and on another way.

Letters: K frames of a stack, H W image, A action.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import numpy as np
from torch import Tensor

from mbrl.replay import Episode

ROOM = 20  # one moment in so many is forgotten at a time


@dataclasses.dataclass(eq=False, slots=True)
class Moment:
    """Where a dream and the simulator beside it are after a decision, or where a dream begins."""

    id: int
    parent: Moment | None  # None of a start
    action: np.ndarray | None  # float32 (A,), taken in the parent; None of a start and where the dream was woken
    pilot: str  # who chose the action
    depth: int  # decisions since the reset of the simulator
    dream: np.ndarray  # uint8 (3, H, W)
    real: np.ndarray  # uint8 (3, H, W)
    state: Any  # the simulator's snapshot
    predicted: dict[str, float]  # what the heads said of the action
    reward: float | None = None  # what it earned in the simulator
    success: bool = False
    terminated: bool = False
    temperature: float = 0.0  # of the dream's step to here
    anchored: bool = False  # the model's positions are used up, so the dream begins again here from its own last frames
    context: Tensor | None = None  # float (1, K, 3, H, W) in [0, 1], what the dream begins from where it begins here
    seen: np.ndarray | None = None  # uint8 (K, 3, H, W), the real stack that a start or a woken dream begins from
    before: Episode | None = None  # of a start: the episode from its reset to here; None once that is forgotten

    @property
    def mse(self) -> float:
        """Mean squared error of the dream, images in [0, 1]."""
        return float(np.square((self.dream.astype(np.float32) - self.real) / 255).mean())


class Tree:
    """Moments by their ids, which are never given twice.

    Args:
        stack: K, images that a policy sees.
        limit: moments held; then the oldest are forgotten.
    """

    def __init__(self, stack: int, limit: int) -> None:
        self.stack, self.limit = stack, limit
        self.forgotten = 0  # how often the oldest were
        self.moments: dict[int, Moment] = {}
        self.next_id = 0

    def __len__(self) -> int:
        return len(self.moments)

    def add(self, parent: Moment | None, action: np.ndarray | None, pilot: str, **fields: Any) -> Moment:
        """A new moment behind `parent`; None makes a start, which says its `depth` itself."""
        if parent is not None:
            fields["depth"] = parent.depth + (action is not None)
        moment = Moment(self.next_id, parent, action, pilot, **fields)
        self.moments[moment.id] = moment
        self.next_id += 1
        return moment

    def path(self, moment: Moment) -> list[Moment]:
        """From its start to the moment."""
        behind = [moment]
        while behind[-1].parent is not None:
            behind.append(behind[-1].parent)
        return behind[::-1]

    def real_stack(self, moment: Moment) -> np.ndarray:
        """The newest K real images up to the moment: uint8 (K, 3, H, W)."""
        images: list[np.ndarray] = []
        while len(images) < self.stack and moment.parent is not None:
            if moment.action is not None:
                images.append(moment.real)
            moment = moment.parent
        return self._behind(moment.seen, images)

    def dream_stack(self, moment: Moment) -> np.ndarray:
        """The newest K images of the dream up to the moment, real ones where it began: uint8 (K, 3, H, W)."""
        images: list[np.ndarray] = []
        while len(images) < self.stack and moment.seen is None:
            assert moment.parent is not None, "a start has been seen"
            images.append(moment.dream)
            moment = moment.parent
        return self._behind(moment.seen, images)

    def _behind(self, seen: np.ndarray | None, images: list[np.ndarray]) -> np.ndarray:
        """The newest first among `images`."""
        if missing := self.stack - len(images):
            assert seen is not None, "a start has been seen"
            return np.stack([*seen[-missing:], *images[::-1]])
        return np.stack(images[::-1])

    def make_room(self, here: Moment) -> None:
        """Forget the oldest moments if there are too many: first what was left behind, then the way to `here`."""
        if len(self) <= self.limit:
            return
        self.forgotten += 1
        path = self.path(here)
        children = collections.Counter(m.parent.id for m in self.moments.values() if m.parent is not None)
        children.update(m.id for m in path)  # never a leaf
        leaves = [m for m in self.moments.values() if not children[m.id]]
        while leaves and len(self) > self.limit - self.limit // ROOM:
            leaf: Moment | None = leaves.pop(0)
            while leaf is not None and not children[leaf.id]:
                del self.moments[leaf.id]
                if (leaf := leaf.parent) is not None:
                    children[leaf.id] -= 1
        later = next((i for i, m in enumerate(path) if i and m.context is not None), None)
        if len(self) > self.limit and later is not None:
            first = path[later]
            first.seen, first.parent = self.real_stack(first), None
            for moment in path[:later]:
                del self.moments[moment.id]

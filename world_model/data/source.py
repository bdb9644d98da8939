"""Foreign video in, one clip at a time: the contract that every reader keeps, and the way into the training format.

    reader = NpzFolder(options)
    for name, units in reader.shards(100).items():      # shards can be made in parallel and in any order
        for clip, read in reader.clips(units):
            episode = read()                          # raises one of BROKEN where the clip is damaged; None: left out

A reader lists what there is without opening it; `read` opens one clip. So a damaged clip costs that clip alone and can
be named. Letters: T frames of a clip, H W height and width as recorded, A action.
"""

import contextlib
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from world_model.api import Episode
from world_model.data.clips import DataError
from world_model.files import READ_ERRORS

BROKEN = READ_ERRORS  # what the libraries below raise on a file that is not what it should be

NamedClip = tuple[str, Callable[[], Episode | None]]


class MissingPackage(DataError):
    """An optional package that a reader needs."""


class Reader(Protocol):
    @property
    def unit(self) -> str:
        """What `shards` counts: "episode" or "file"."""

    def shards(self, size: int) -> dict[str, Sequence[Any]]:
        """Names of shards and what goes into each, always the same for the same folder; `size` episodes where known."""

    def clips(self, units: Sequence[Any]) -> Iterator[NamedClip]:
        """The clips of some units, each with its name and the function that reads it."""


class SourceOptions(NamedTuple):
    """What all readers of files share."""

    path: Path
    name: str  # of the dataset: its shards are called after it
    image_key: str | None  # which camera, under its name in the source; None is the reader's choice
    image_size: int  # height and width in the training format
    crop: Literal["none", "center"]  # none squeezes an image that is not square; center cuts it
    step: int  # keep every step-th frame
    actions: bool  # False leaves them out, as in a mixture of robots with unlike actions
    classes: tuple[int, ...]  # of Something-Something v2: those to keep; empty keeps all
    left_out: frozenset[str] = frozenset()  # episodes to leave out, by the stem of the file that holds or held them

    def episode(
        self,
        frames: Iterable[np.ndarray],
        actions: np.ndarray | None = None,
        rewards: np.ndarray | None = None,
        successes: np.ndarray | None = None,
    ) -> Episode:
        """The training format of one clip.

        Args:
            frames: uint8 (H, W, 3) each; may be lazy.
            actions: (T, A) or (T - 1, A), actions[i] leads from frame i to i + 1. With a step above one, the actions
                between two kept frames become one of step * A numbers: nothing else is right for every robot.
            rewards: (T,) or (T - 1,), likewise; they are summed. None is zero.
            successes: (T,) or (T - 1,), likewise; one is enough. None is unknown.
        Raises:
            ValueError: fewer than two frames are left, or actions, rewards or successes do not fit them.
        """
        kept = [fit(frame, self.image_size, self.crop) for frame in itertools.islice(frames, 0, None, self.step)]
        length = len(kept) - 1
        if length < 1:
            raise ValueError(f"has {len(kept)} frames with step={self.step}, at least 2 are needed")
        if actions is None or not self.actions:
            actions = np.zeros((length * self.step, 0), np.float32)
        if rewards is None:
            rewards = np.zeros(length * self.step, np.float32)
        steps: dict[str, np.ndarray] = {}
        for kind, values in (("actions", actions), ("rewards", rewards), ("successes", successes)):
            if values is None:
                continue
            used = np.asarray(values, np.float32)[: length * self.step]
            if len(used) < length * self.step:
                raise ValueError(f"has {len(values)} {kind}, but {length * self.step} steps between its frames")
            if not np.isfinite(used).all():
                raise ValueError(f"has {kind} that are not finite")
            steps[kind] = used.reshape(length, self.step, -1)
        joined = steps["actions"].reshape(length, self.step * steps["actions"].shape[2])
        touched = steps["successes"].max((1, 2)) if "successes" in steps else None
        return Episode(np.stack(kept), joined, steps["rewards"].sum((1, 2)), successes=touched)


def fit(frame: np.ndarray, size: int, crop: Literal["none", "center"] = "none") -> np.ndarray:
    """An image (H, W, 3) as (3, size, size): cut if asked, then resized with antialiasing. uint8."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"a frame is {frame.dtype} {frame.shape}, not uint8 (H, W, 3)")
    if crop == "center":
        side = min(frame.shape[:2])
        top, left = ((length - side) // 2 for length in frame.shape[:2])
        frame = frame[top : top + side, left : left + side]
    image = frame.transpose(2, 0, 1)
    if image.shape[1:] == (size, size):
        return image
    resized = F.interpolate(
        torch.from_numpy(image.astype(np.float32))[None], (size, size), mode="bilinear", antialias=True
    )
    return resized[0].round().clamp(0, 255).byte().numpy()


def decode_image(encoded: bytes) -> np.ndarray:
    """JPEG, PNG, ... -> uint8 (H, W, 3). Raises ValueError."""
    try:
        return np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: on some damaged PNGs
        raise ValueError(f"an image is damaged: {error}") from error


def groups(name: str, units: Sequence[Any], size: int) -> dict[str, Sequence[Any]]:
    """Units in order, `size` a shard."""
    starts = range(0, len(units), size)
    return {f"{name}-{number:05d}": units[start : start + size] for number, start in enumerate(starts)}


def found(paths: Iterable[Path], what: str, folder: Path) -> list[Path]:
    """The paths in order. Raises DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"path={folder}: there is no such folder")
    if not (listed := sorted(paths)):
        raise DataError(f"path={folder} holds no {what}")
    return listed


@contextlib.contextmanager
def needs(package: str) -> Iterator[None]:
    """Around the import of an optional package."""
    try:
        yield
    except ImportError:
        raise MissingPackage(f"this source needs {package}: .venv/bin/pip install '.[video]'") from None

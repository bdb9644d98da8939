"""What was driven, to look at: real | dream | error, as GIF or MP4."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mbrl.experiment.settings import UserError
from mbrl.experiment.video import SCALE, Images, dream_grid, encode_gif, write_mp4
from mbrl.play.tree import Moment

LONGEST = 1000  # moments of a film, the newest
Format = Literal["gif", "mp4"]


class Reel(NamedTuple):
    """T moments, one after the other."""

    real: Images  # uint8 (T, 3, H, W)
    dream: Images
    rewards: NDArray[np.float32]  # (T,)
    predicted: NDArray[np.float32]  # 0 of a model without rewards


def reel(path: Sequence[Moment]) -> Reel:
    """The decisions of a path. Raises UserError: there is none."""
    taken = [moment for moment in path if moment.action is not None][-LONGEST:]
    if not taken:
        raise UserError("nothing was driven yet")
    return Reel(
        np.stack([moment.real for moment in taken]),
        np.stack([moment.dream for moment in taken]),
        np.asarray([moment.reward for moment in taken], np.float32),
        np.asarray([moment.predicted.get("reward", 0.0) for moment in taken], np.float32),
    )


def film(reel: Reel, fps: float, format: Format, scale: int = SCALE) -> bytes:
    """The bytes of a file. Raises UserError: MP4 needs a package that is not installed."""
    frames = dream_grid(reel.real[None], reel.dream[None], reel.rewards[None], reel.predicted[None], scale)
    if format == "gif":
        return encode_gif(frames, fps)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drive.mp4"
        write_mp4(path, frames, fps)
        return path.read_bytes()

"""Moving images as GIF: a dream beside reality, and evaluation episodes.

    frames = dream_grid(real, imagined, rewards, predicted)   # uint8 (T, 3, height, width)
    run.log_video("imagined/dream", frame, encode_gif(frames, fps=5))

Letters: B clips, T frames, H W image; all images uint8, RGB, channel first.
"""

import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mbrl.experiment.settings import UserError

Images = NDArray[np.uint8]

SCALE = 3  # one simulator pixel becomes 3x3, so that text beside it can be read
HEADER = 16  # pixels above the top row for the columns' names
GAP = 2  # pixels between the cells
ERROR_GAIN = 3  # errors of a good model are faint
TEXT_SIZE = 12


def encode_gif(frames: Images, fps: float = 10.0) -> bytes:
    """GIF bytes of `frames` (T, 3, H, W), played in a loop."""
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"a GIF needs uint8 frames (T, 3, H, W), not {frames.dtype} {frames.shape}")
    images = [
        Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).quantize(
            256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
        )
        for frame in frames
    ]
    # GIF counts time in hundredths of a second, and viewers slow down anything faster than 2.
    duration = max(20, 10 * round(100 / fps))
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0, optimize=False)
    return file.getvalue()


def write_gif(path: Path, frames: Images, fps: float = 10.0) -> None:
    """`encode_gif` into a file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_gif(frames, fps))


def write_mp4(path: Path, frames: Images, fps: float = 10.0) -> None:
    """`frames` (T, 3, H, W) as H.264 in an MP4. Raises UserError: PyAV is not installed."""
    try:
        import av
    except ImportError:
        raise UserError("video=mp4 needs PyAV: .venv/bin/pip install '.[video]' (or video=gif)") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.pad(frames, ((0, 0), (0, 0), (0, frames.shape[2] % 2), (0, frames.shape[3] % 2)))  # H.264: even sides
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(fps))
        stream.height, stream.width, stream.pix_fmt = frames.shape[2], frames.shape[3], "yuv420p"
        for frame in frames:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.transpose(1, 2, 0)), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))


def error_images(real: Images, imagined: Images) -> Images:
    """The absolute difference, brightened: uint8 (B, T, 3, H, W) twice -> the same."""
    if real.shape != imagined.shape or real.ndim != 5:
        raise ValueError(f"real {real.shape} and imagined {imagined.shape} must both be (B, T, 3, H, W)")
    difference = np.abs(real.astype(np.int16) - imagined.astype(np.int16))
    return np.minimum(ERROR_GAIN * difference, 255).astype(np.uint8)


def comparison(columns: Mapping[str, Images], scale: int = SCALE) -> Images:
    """Moving images, one row a clip and one column each of `columns`, (B, T, 3, H, W) by name -> (T, 3, h, w)."""
    cells = np.stack(list(columns.values()), axis=1)  # (B, columns, T, 3, H, W)
    frames = []
    for t in range(cells.shape[2]):
        canvas, corners = _canvas([list(row) for row in cells[:, :, t]], scale)
        _headings(canvas, corners, columns)
        frames.append(np.asarray(canvas).transpose(2, 0, 1))
    return np.stack(frames)


def write_film(path: Path, rows: Mapping[str, Images], scale: int = SCALE) -> None:
    """A PNG of clips laid out in time: of each clip one line for each of `rows`, (B, T, 3, H, W) by name."""
    cells = np.stack(list(rows.values()), axis=1)  # (B, rows, T, 3, H, W)
    canvas, corners = _canvas([list(line) for line in cells.reshape(-1, *cells.shape[2:])], scale)
    _headings(canvas, corners, [f"t+{t + 1}" for t in range(cells.shape[2])])
    draw = ImageDraw.Draw(canvas)
    for line, name in zip(corners, list(rows) * len(cells), strict=True):
        _label(draw, line[0], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def dream_grid(
    real: Images,
    imagined: Images,
    rewards: NDArray[np.floating],
    predicted: NDArray[np.floating],
    scale: int = SCALE,
) -> Images:
    """One row a clip: real | imagined | error, with the true and the predicted reward written in.

    `real` and `imagined` are (B, T, 3, H, W); `rewards[:, t]` and `predicted[:, t]`, both (B, T), were earned
    on arriving at frame t. The error is the absolute difference, brightened. Returns (T, 3, height, width).
    """
    error = error_images(real, imagined)
    if rewards.shape != real.shape[:2] or predicted.shape != real.shape[:2]:
        raise ValueError(f"rewards {rewards.shape}, {predicted.shape} must be (B, T) = {real.shape[:2]}")
    clips, length = real.shape[:2]
    cells = np.stack([real, imagined, error], axis=1)  # (B, 3, T, 3, H, W)
    grid = []
    for t in range(length):
        canvas, corners = _canvas([list(row) for row in cells[:, :, t]], scale)
        draw = ImageDraw.Draw(canvas)
        _headings(canvas, corners, ("real", "imagined", "error"))
        for row in range(clips):
            _label(draw, corners[row][0], f"reward {rewards[row, t]:.2f}")
            _label(draw, corners[row][1], f"reward {predicted[row, t]:.2f}")
            mse = np.square((real[row, t].astype(float) - imagined[row, t]) / 255).mean()
            _label(draw, corners[row][2], f"mse {mse:.4f}")
        grid.append(np.asarray(canvas).transpose(2, 0, 1))
    return np.stack(grid)


def side_by_side(episodes: Sequence[Images], captions: Sequence[str] | None = None, scale: int = SCALE) -> Images:
    """Episodes (T, 3, H, W) next to each other, a shorter one resting on its last frame.

    Returns (longest T, 3, height, width); `captions` stand above them.
    """
    if not episodes:
        raise ValueError("no episodes to show")
    captions = captions or [""] * len(episodes)
    length = max(len(episode) for episode in episodes)
    frames = []
    for t in range(length):
        canvas, corners = _canvas([[episode[min(t, len(episode) - 1)] for episode in episodes]], scale)
        draw = ImageDraw.Draw(canvas)
        for (x, _), caption in zip(corners[0], captions, strict=True):
            draw.text((x + 2, 1), caption, fill="white", font=_font())
        frames.append(np.asarray(canvas).transpose(2, 0, 1))
    return np.stack(frames)


def _canvas(rows: Sequence[Sequence[Images]], scale: int) -> tuple[Image.Image, list[list[tuple[int, int]]]]:
    """A black image with the enlarged cells (3, H, W) on it, and every cell's top left corner."""
    _, height, width = rows[0][0].shape
    step_x, step_y = width * scale + GAP, height * scale + GAP
    canvas = Image.new("RGB", (step_x * len(rows[0]) - GAP, HEADER + step_y * len(rows) - GAP))
    corners = [[(x * step_x, HEADER + y * step_y) for x in range(len(rows[0]))] for y in range(len(rows))]
    for row, places in zip(rows, corners, strict=True):
        for cell, place in zip(row, places, strict=True):
            image = Image.fromarray(np.ascontiguousarray(cell.transpose(1, 2, 0)))
            canvas.paste(image.resize((width * scale, height * scale), Image.Resampling.NEAREST), place)
    return canvas, corners


def _headings(canvas: Image.Image, corners: list[list[tuple[int, int]]], names: Iterable[str]) -> None:
    draw = ImageDraw.Draw(canvas)
    for (x, _), name in zip(corners[0], names, strict=True):
        draw.text((x + 2, 1), name, fill="white", font=_font())


def _label(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str) -> None:
    """Text in a cell's corner, readable on any image."""
    x, y = corner
    draw.text((x + 3, y + 2), text, fill="white", font=_font(), stroke_width=1, stroke_fill="black")


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=TEXT_SIZE)

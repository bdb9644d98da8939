"""GIFs: real bytes, the right images, and numbers that can be read."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from mbrl.experiment.video import GAP, HEADER, dream_grid, encode_gif, side_by_side, write_gif


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def decode(gif: bytes) -> np.ndarray:
    images = ImageSequence.Iterator(Image.open(io.BytesIO(gif)))
    return np.stack([np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in images])


def test_gif_round_trip() -> None:
    frames = np.zeros((4, 3, 16, 24), np.uint8)
    for t in range(4):
        frames[t, t % 3, :, 6 * t : 6 * t + 6] = 255
    gif = encode_gif(frames, fps=5)
    assert gif.startswith(b"GIF89a")
    assert np.array_equal(decode(gif), frames)
    info = Image.open(io.BytesIO(gif)).info
    assert (info["duration"], info["loop"]) == (200, 0)  # milliseconds; 0 is forever


def test_write_gif_makes_its_folder(tmp_path: Path) -> None:
    write_gif(tmp_path / "videos" / "a.gif", noise(2, 3, 8, 8))
    assert decode((tmp_path / "videos" / "a.gif").read_bytes()).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    "frames", [noise(2, 8, 8, 3), noise(3, 8, 8), noise(0, 3, 8, 8), np.zeros((2, 3, 8, 8), np.float32)]
)
def test_wrong_frames_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 frames"):
        encode_gif(frames)


def cell(grid: np.ndarray, row: int, column: int, size: int, scale: int) -> np.ndarray:
    """The lower half of a cell, where no text is, at the original size: (T, 3, size / 2, size)."""
    y, x = HEADER + row * (size * scale + GAP), column * (size * scale + GAP)
    return grid[:, :, y : y + size * scale : scale, x : x + size * scale : scale][:, :, size // 2 :]


def test_dream_grid_shows_real_imagined_and_error() -> None:
    size, scale = 64, 3
    real, imagined = noise(2, 5, 3, size, size, seed=1), noise(2, 5, 3, size, size, seed=2)
    grid = dream_grid(real, imagined, np.zeros((2, 5)), np.zeros((2, 5)), scale)
    assert grid.shape == (5, 3, HEADER + 2 * size * scale + GAP, 3 * size * scale + 2 * GAP)
    assert grid.dtype == np.uint8
    error = np.minimum(3 * np.abs(real.astype(int) - imagined.astype(int)), 255)
    for row in range(2):
        for column, expected in enumerate((real, imagined, error)):
            assert np.array_equal(cell(grid, row, column, size, scale), expected[row, :, :, size // 2 :])


def test_dream_grid_writes_each_reward_in_its_own_cell() -> None:
    black = np.zeros((1, 2, 3, 64, 64), np.uint8)
    still = dream_grid(black, black, np.zeros((1, 2)), np.zeros((1, 2)))
    true = dream_grid(black, black, np.array([[0.0, 7.77]]), np.zeros((1, 2)))
    predicted = dream_grid(black, black, np.zeros((1, 2)), np.array([[0.0, 7.77]]))
    width = 64 * 3 + GAP
    for grid, column in ((true, 0), (predicted, 1)):
        changed = np.argwhere((grid != still).any(axis=1))  # (t, y, x)
        assert set(changed[:, 0]) == {1}
        assert set(changed[:, 2] // width) == {column}


def test_dream_grid_refuses_shapes_that_do_not_match() -> None:
    clip = noise(1, 4, 3, 8, 8)
    with pytest.raises(ValueError, match="must both be"):
        dream_grid(clip, clip[:, :3], np.zeros((1, 4)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="rewards"):
        dream_grid(clip, clip, np.zeros((1, 3)), np.zeros((1, 4)))


def test_side_by_side_holds_the_last_frame_of_a_short_episode() -> None:
    short, long = noise(2, 3, 8, 8, seed=1), noise(4, 3, 8, 8, seed=2)
    frames = side_by_side([short, long], scale=1)
    assert frames.shape == (4, 3, HEADER + 8, 16 + GAP)
    assert np.array_equal(frames[:, :, HEADER:, :8], short[[0, 1, 1, 1]])
    assert np.array_equal(frames[:, :, HEADER:, 8 + GAP :], long)
    with pytest.raises(ValueError, match="no episodes"):
        side_by_side([])

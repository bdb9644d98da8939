"""Compressed video, frame by frame, with PyAV."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from world_model.data.source import needs
from world_model.files import regular

with needs("av"):
    import av


def decode_video(file: Path | bytes, start: float = 0.0, count: int | None = None) -> Iterator[np.ndarray]:
    """uint8 (H, W, 3), from the frame shown at `start` seconds on, `count` of them or all.

    Raises ValueError: the file is damaged, or ends before `count` frames.
    """
    shown = 0
    try:
        with av.open(io.BytesIO(file) if isinstance(file, bytes) else str(regular(file)), "r") as container:
            stream = container.streams.video[0]
            if start:
                assert stream.time_base is not None
                container.seek(int(start / stream.time_base), stream=stream)  # to the key frame at or before it
            half = 0.5 / float(stream.average_rate or 25)
            for frame in container.decode(stream):
                if frame.time is not None and frame.time < start - half:
                    continue
                if shown == count:
                    break
                yield frame.to_ndarray(format="rgb24")
                shown += 1
    except (av.FFmpegError, IndexError) as error:  # no video stream is an IndexError
        raise ValueError(f"its video is damaged: {error}") from error
    if count is not None and shown < count:
        raise ValueError(f"its video has {shown} of {count} frames")

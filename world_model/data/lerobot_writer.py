"""Episodes out as a LeRobot dataset, version 3 (drawn in `lerobot.py`), with lossless images in its tables.

A row is a frame with the action taken there, what that earned and whether it touched success. The frame that ends an
episode has a row as well: nothing is done there, so it repeats the last action and earns nothing. `next.done` is true
from the last action on.

Letters: T decisions of an episode, A action, H W height and width, N rows, D numbers a row.
"""

import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from world_model.api import Episode
from world_model.data.clips import DataError
from world_model.data.source import needs

with needs("pyarrow"):
    import pyarrow as pa
    import pyarrow.parquet as pq

FILE_MB, CHUNK_FILES = 100, 1000  # LeRobot's defaults: the size of a table, tables in a folder
PATH = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Tells pandas that this column is the index of its table, where LeRobot looks a task up.
INDEX = "__index_level_0__"
PANDAS = {
    "index_columns": [INDEX],
    "columns": [
        {"name": None, "field_name": INDEX, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    ],
    "column_indexes": [],
}


class Written(NamedTuple):
    episodes: int
    frames: int


def write_lerobot(folder: Path, episodes: Iterable[Episode], *, camera: str, fps: int, task: str) -> Written:
    """Write a dataset, whole or not at all. The first episode says whether there are actions and successes.

    Args:
        folder: that does not exist yet.
        episodes: one after the other; only one is held in memory.
        camera: name of the images, such as "observation.images.corner".
        fps: frames of an episode in a second.
        task: what the episodes are about, in words.
    Raises:
        DataError: there is something at `folder`, there is no episode, or one is not like the first.
    """
    if folder.exists():
        raise DataError(f"{folder} is there already; choose another folder, or remove it")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    tables = _Tables(temporary, camera, fps, task)
    try:
        for episode in episodes:
            tables.add(episode)
        if not tables.episodes:
            raise DataError(f"there are no episodes to write into {folder}")
        tables.describe()
        os.replace(temporary, folder)
    finally:
        tables.close()
        shutil.rmtree(temporary, ignore_errors=True)
    return Written(len(tables.episodes), tables.frames)


class _Tables:
    """The files of a dataset while it grows."""

    def __init__(self, folder: Path, camera: str, fps: int, task: str) -> None:
        self.episodes: list[dict[str, Any]] = []  # their rows in meta/episodes
        self.frames = 0
        self._folder, self._camera, self._fps, self._task = folder, camera, fps, task
        self._features: dict[str, dict[str, Any]] = {}
        self._stats: dict[str, _Moments] = {}
        self._writer: pq.ParquetWriter | None = None
        self._file, self._bytes = 0, 0

    def add(self, episode: Episode) -> None:
        columns = self._columns(episode)
        features = {name: self._feature(name, values) for name, values in columns.items()}
        self._features = self._features or features
        if differing := [name for name in features | self._features if features.get(name) != self._features.get(name)]:
            raise DataError(f"episode {len(self.episodes)} has another {differing[0]} than the first")
        table = pa.table({name: self._stored(name, values) for name, values in columns.items()})
        place = self._place(table)
        self.episodes.append(
            {
                "episode_index": len(self.episodes),
                "tasks": [self._task],
                "length": len(table),
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + len(table),
                "data/chunk_index": place["chunk_index"],
                "data/file_index": place["file_index"],
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            }
        )
        self.frames += len(table)
        for name, values in columns.items():
            pixels = values.reshape(-1, 3) / 255 if name == self._camera else values
            self._stats.setdefault(name, _Moments(pixels.shape[1])).add(pixels)

    def describe(self) -> None:
        """Write what stands in meta/."""
        self.close()
        meta = self._folder / "meta"
        table = meta / "episodes" / PATH.format(chunk_index=0, file_index=0)
        table.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self.episodes), table)
        tasks = pa.table({"task_index": [0], INDEX: [self._task]})
        pq.write_table(tasks.replace_schema_metadata({"pandas": json.dumps(PANDAS)}), meta / "tasks.parquet")
        images = {self._camera: self.frames}
        stats = {name: moments.told(images.get(name)) for name, moments in self._stats.items()}
        info = {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(self.episodes),
            "total_frames": self.frames,
            "total_tasks": 1,
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": FILE_MB,
            "video_files_size_in_mb": FILE_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{len(self.episodes)}"},
            "data_path": f"data/{PATH}",
            "video_path": None,
            "features": self._features,
        }
        for name, content in (("stats", stats), ("info", info)):
            (meta / f"{name}.json").write_text(json.dumps(content, indent=1))

    def close(self) -> None:
        """Finish the table under way."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _columns(self, episode: Episode) -> dict[str, np.ndarray]:
        """(T + 1, D) each, the images (T + 1, H, W, 3)."""
        last, row = len(episode.rewards) - 1, np.arange(len(episode.rewards) + 1)
        columns = {
            self._camera: episode.frames.transpose(0, 2, 3, 1),
            "action": episode.actions[np.minimum(row, last)],
            "next.reward": np.append(episode.rewards, np.float32(0)),
            "next.done": row >= last,
            "timestamp": (row / self._fps).astype(np.float32),
            "frame_index": row,
            "episode_index": np.full(len(row), len(self.episodes)),
            "index": self.frames + row,
            "task_index": np.zeros(len(row), np.int64),
        }
        if not episode.actions.shape[1]:
            del columns["action"]
        if episode.successes is not None and not np.isnan(episode.successes).any():
            columns["next.success"] = np.append(episode.successes > 0.5, False)
        return {name: values[:, None] if values.ndim == 1 else values for name, values in columns.items()}

    def _feature(self, name: str, values: np.ndarray) -> dict[str, Any]:
        """Its entry in info.json."""
        dtype, names = ("image", ["height", "width", "channels"]) if name == self._camera else (str(values.dtype), None)
        return {"dtype": dtype, "shape": list(values.shape[1:]), "names": names}

    def _stored(self, name: str, values: np.ndarray) -> pa.Array:
        if name == self._camera:
            return pa.array([{"bytes": _png(image), "path": None} for image in values], IMAGE)
        column = pa.array(values.ravel())
        return column if values.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(column, values.shape[1])

    def _place(self, table: pa.Table) -> dict[str, int]:
        """Write the rows of an episode; chunk and file that they are in."""
        if self._bytes + table.nbytes > FILE_MB * 2**20:
            self.close()
            self._file, self._bytes = self._file + 1, 0
        chunk, file = divmod(self._file, CHUNK_FILES)
        place = {"chunk_index": chunk, "file_index": file}
        if self._writer is None:
            path = self._folder / "data" / PATH.format(**place)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(path, table.schema)
        self._writer.write_table(table)
        self._bytes += table.nbytes
        return place


class _Moments:
    """Smallest, largest, mean and standard deviation of numbers (N, D) that come bit by bit."""

    def __init__(self, numbers: int) -> None:
        self._count, self._sum, self._squares = 0, np.zeros(numbers), np.zeros(numbers)
        self._min, self._max = np.full(numbers, np.inf), np.full(numbers, -np.inf)

    def add(self, values: np.ndarray) -> None:
        values = values.astype(np.float64)
        self._count += len(values)
        self._sum, self._squares = self._sum + values.sum(0), self._squares + np.square(values).sum(0)
        self._min, self._max = np.minimum(self._min, values.min(0)), np.maximum(self._max, values.max(0))

    def told(self, images: int | None) -> dict[str, Any]:
        """Its entry in stats.json; of pixels with the number of images."""
        mean = self._sum / self._count
        std = np.sqrt(np.maximum(self._squares / self._count - mean**2, 0))
        values = {"min": self._min, "max": self._max, "mean": mean, "std": std}
        shaped = {name: value if images is None else value[:, None, None] for name, value in values.items()}
        return {name: value.tolist() for name, value in shaped.items()} | {"count": [images or self._count]}


def _png(image: np.ndarray) -> bytes:
    """An image (H, W, 3), lossless."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()

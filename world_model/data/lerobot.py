"""LeRobot datasets, version 3: tables in Parquet, video in MP4; many episodes share a file.

    <path>/
        meta/info.json                                   features, frame rate, patterns of the paths below
        meta/episodes/chunk-000/file-000.parquet         one row an episode: where its frames and its video are
        data/chunk-000/file-000.parquet                  one row a frame: action, next.reward, ..., or its image
        videos/<camera>/chunk-000/file-000.mp4           episodes one behind the other, found by their timestamps

Source: huggingface/lerobot, src/lerobot/datasets (codebase_version v3.0).
"""

import functools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from world_model.api import Episode
from world_model.data.clips import DataError
from world_model.data.source import NamedClip, SourceOptions, decode_image, found, groups, needs
from world_model.data.video import decode_video
from world_model.files import read_json, reading, regular

with needs("pyarrow"):
    import pyarrow.parquet as pq

REWARD, SUCCESS = "next.reward", "next.success"  # of the action of the same row


class LeRobot:
    unit = "episode"

    def __init__(self, options: SourceOptions) -> None:
        self.options = options
        path = options.path / "meta/info.json"
        with reading(path, DataError, f"path={options.path} is no LeRobot dataset"):
            self.info = read_json(path)
            version, self.features = str(self.info["codebase_version"]), self.info["features"]
            cameras = [name for name, feature in self.features.items() if feature["dtype"] in ("video", "image")]
        if not version.startswith("v3"):
            raise DataError(f"path={options.path} is a LeRobot dataset of {version}; convert it to v3.0 with lerobot")
        self.camera = options.image_key or (cameras[0] if cameras else "")
        if self.camera not in cameras:
            raise DataError(f"path={options.path} has no image_key={self.camera}, only {', '.join(cameras) or 'none'}")

    def shards(self, size: int) -> dict[str, Sequence[int]]:
        return groups(self.options.name, range(len(self.episodes)), size)

    @functools.cached_property
    def episodes(self) -> list[dict[str, Any]]:
        folder = self.options.path / "meta/episodes"
        columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        if self._is_video:
            columns += [f"videos/{self.camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
        rows = []
        for file in found(folder.rglob("*.parquet"), ".parquet files", folder):
            with reading(file, DataError):  # without this table no episode can be found
                table = pq.read_table(regular(file), columns=columns)
                if missing := set(columns) - set(table.column_names):
                    raise KeyError(min(missing))
                rows += table.to_pylist()
        return rows

    @property
    def _is_video(self) -> bool:
        return self.features[self.camera]["dtype"] == "video"

    def clips(self, units: Sequence[int]) -> Iterator[NamedClip]:
        for unit in units:
            episode = self.episodes[unit]
            yield f"episode {episode['episode_index']}", partial(self._read, episode)

    def _read(self, episode: dict[str, Any]) -> Episode:
        columns = [name for name in ("action", REWARD, SUCCESS) if name in self.features]
        if not self._is_video:
            columns.append(self.camera)
        table = pq.read_table(
            regular(self._file(self.info["data_path"], episode, "data")),
            columns=columns,
            filters=[("episode_index", "=", episode["episode_index"])],
        )
        if len(table) != episode["length"]:
            raise ValueError(f"has {len(table)} of {episode['length']} rows")
        values = {name: table[name].to_pylist() for name in columns}
        steps = (np.array(values[name], np.float32) if name in values else None for name in ("action", REWARD, SUCCESS))
        return self.options.episode(self._frames(episode, values), *steps)

    def _frames(self, episode: dict[str, Any], values: dict[str, list]) -> Iterator[np.ndarray]:
        if not self._is_video:
            return (decode_image(image["bytes"]) for image in values[self.camera])
        file = self._file(self.info["video_path"], episode, f"videos/{self.camera}")
        return decode_video(file, episode[f"videos/{self.camera}/from_timestamp"], episode["length"])

    def _file(self, pattern: str, episode: dict[str, Any], kind: str) -> Any:
        chunk, file = (episode[f"{kind}/{name}"] for name in ("chunk_index", "file_index"))
        return self.options.path / pattern.format(video_key=self.camera, chunk_index=chunk, file_index=file)

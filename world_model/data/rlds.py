"""Open X-Embodiment and other RLDS datasets, as tensorflow_datasets stores them; neither it nor TensorFlow is needed.

    <path>/  the version's folder, such as bridge/0.1.0:
        features.json  dataset_info.json
        bridge-train.tfrecord-00000-of-01024  ...        one record an episode

In a record every step's value stands behind the one before: `steps/observation/<camera>` holds T encoded images,
`steps/action` T * A numbers (or `steps/action/<part>` does, then the parts are joined in the order of their names),
`steps/reward` T. actions[t] is taken at observation t (RLDS, arXiv 2111.02767). Words outside `steps/`, such as
`episode_metadata/file_path`, tell which file an episode was made from.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath

import numpy as np

from world_model.api import Episode
from world_model.data.clips import DataError
from world_model.data.source import NamedClip, SourceOptions, decode_image, found, groups
from world_model.data.tfrecord import Example, examples


class Rlds:
    unit = "file"

    def __init__(self, options: SourceOptions) -> None:
        self.options = options

    def shards(self, size: int) -> dict[str, Sequence[str]]:
        """One file a shard: how many episodes it holds shows only when it is read."""
        folder = self.options.path
        files = found(folder.glob("*.tfrecord-*"), ".tfrecord files (it must be a version's folder)", folder)
        return groups(self.options.name, [file.name for file in files], 1)

    def clips(self, units: Sequence[str]) -> Iterator[NamedClip]:
        for unit in units:
            for name, example in examples(self.options.path / unit):
                yield name, partial(self._read, example)

    def _read(self, example: Callable[[], Example]) -> Episode | None:
        features = example()
        if self.options.left_out and _made_from(features) & self.options.left_out:
            return None
        key = f"steps/observation/{self.options.image_key or 'image'}"
        images = features.get(key)
        if not isinstance(images, list):
            cameras = [name.split("/", 2)[2] for name, value in features.items() if _holds_images(name, value)]
            raise ValueError(f"has no image_key={key.split('/', 2)[2]}, only {', '.join(sorted(cameras))}")
        rewards = features.get("steps/reward")
        return self.options.episode(
            (decode_image(image) for image in images),
            _actions(features, len(images)),
            rewards if isinstance(rewards, np.ndarray) else None,
        )


def _actions(features: Example, length: int) -> np.ndarray | None:
    """(T, A); words among the actions are left out."""
    names = sorted(name for name in features if name == "steps/action" or name.startswith("steps/action/"))
    parts = [features[name] for name in names]
    numbers = [part.astype(np.float32).reshape(length, -1) for part in parts if isinstance(part, np.ndarray)]
    return np.concatenate(numbers, axis=1) if numbers else None


def _made_from(features: Example) -> set[str]:
    """The stems of the files that the episode names as its origin. Raises DataError if it names none."""
    words = [value[0].decode() for name, value in features.items() if not name.startswith("steps/") and _is_text(value)]
    if not (files := {path.stem for path in map(PurePosixPath, words) if path.suffix}):
        raise DataError("the episodes do not say what file they are of, so those for testing cannot be left out")
    return files


def _is_text(value: list[bytes] | np.ndarray) -> bool:
    return isinstance(value, list) and bool(value)


def _holds_images(name: str, value: list[bytes] | np.ndarray) -> bool:
    if not name.startswith("steps/observation/") or not isinstance(value, list):
        return False
    return bool(value) and value[0].startswith((b"\x89PNG", b"\xff\xd8"))

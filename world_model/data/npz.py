"""Folders of .npz episodes, as the official iVideoGPT converters write them (Open X-Embodiment, BAIR, RoboNet, VP2).

<path>/**/<episode>.npz    one array of images (T, H, W, 3) under its camera's name, and where known
                           `action` (T, A) or (T - 1, A) and `reward` (T,) or (T - 1,)
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from world_model.api import Episode
from world_model.data.source import NamedClip, SourceOptions, found, groups
from world_model.files import regular


class NpzFolder:
    unit = "episode"

    def __init__(self, options: SourceOptions) -> None:
        self.options = options

    def shards(self, size: int) -> dict[str, Sequence[str]]:
        folder = self.options.path
        files = found(folder.rglob("*.npz"), ".npz files", folder)
        files = [file for file in files if file.stem not in self.options.left_out]
        return groups(self.options.name, [str(file.relative_to(folder)) for file in files], size)

    def clips(self, units: Sequence[str]) -> Iterator[NamedClip]:
        for unit in units:
            yield unit, partial(self._read, unit)

    def _read(self, unit: str) -> Episode:
        with np.load(regular(self.options.path / unit), allow_pickle=False) as file:
            images = file[self._image_key(file.files)]
            actions = file["action"] if "action" in file else None
            rewards = file["reward"] if "reward" in file else None
        if images.dtype.kind not in "iu" or images.min() < 0 or images.max() > 255:
            raise ValueError(f"its images are {images.dtype}, not whole numbers from 0 to 255")
        return self.options.episode(images.astype(np.uint8), actions, rewards)  # the BAIR converter writes int64

    def _image_key(self, names: list[str]) -> str:
        key = self.options.image_key or "image"
        if key not in names:
            raise ValueError(f"has no image_key={key}, only {', '.join(names)}")
        return key

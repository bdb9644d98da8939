"""BAIR robot pushing, as downloaded: TFRecords of raw 64x64 images.

    <path>/traj_<first>_to_<last>.tfrecords    one record a clip of 30 frames; <path> is .../softmotion30_44k/train
                                               or .../test

A record holds `<t>/image_aux1/encoded` and `<t>/image_main/encoded` (raw bytes in spite of the name) and `<t>/action`
(4 numbers). Video prediction on BAIR uses the camera image_aux1 (Ebert et al., arXiv 1710.05268).
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from world_model.api import Episode
from world_model.data.source import NamedClip, SourceOptions, found, groups
from world_model.data.tfrecord import Example, examples

SIZE = 64


class Bair:
    unit = "file"

    def __init__(self, options: SourceOptions) -> None:
        self.options = options

    def shards(self, size: int) -> dict[str, Sequence[str]]:
        """One file a shard, in the order of its trajectories' numbers."""
        folder = self.options.path
        files = [file.name for file in found(folder.glob("*.tfrecords"), ".tfrecords files", folder)]
        return groups(self.options.name, sorted(files, key=lambda name: [int(n) for n in re.findall(r"\d+", name)]), 1)

    def clips(self, units: Sequence[str]) -> Iterator[NamedClip]:
        for unit in units:
            for name, example in examples(self.options.path / unit):
                yield name, partial(self._read, example)

    def _read(self, example: Callable[[], Example]) -> Episode:
        features, camera = example(), self.options.image_key or "image_aux1"
        frames, actions = [], []
        for t in itertools.count():
            images = features.get(f"{t}/{camera}/encoded")
            if images is None:
                break
            frames.append(np.frombuffer(images[0], np.uint8).reshape(SIZE, SIZE, 3))
            actions.append(features[f"{t}/action"])
        if not frames:
            raise ValueError(f"has no image_key={camera}")
        return self.options.episode(frames, np.array(actions))

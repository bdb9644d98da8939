"""RoboNet: one HDF5 file a trajectory, its video inside as one MP4 or as JPEGs (Dasari et al., arXiv 1910.11215).

    <path>/*.hdf5
        env/cam<n>_video/frames          bytes of an MP4, or frame0, frame1, ... of a JPEG each
        env/state (T, S)  policy/actions (T - 1, A)   misc/  metadata (attributes: primitives, low_bound, high_bound)

Actions become five numbers, as in the paper: robots with fewer get zeros, more are cut. Where the robot closes its
gripper by itself (autograsp, four numbers), the fifth is the bound that its gripper was nearer to afterwards.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from world_model.api import Episode
from world_model.data.source import NamedClip, SourceOptions, decode_image, found, groups, needs
from world_model.data.video import decode_video
from world_model.files import regular

with needs("h5py"):
    import h5py

ACTIONS = 5


class RoboNet:
    unit = "episode"

    def __init__(self, options: SourceOptions) -> None:
        self.options = options

    def shards(self, size: int) -> dict[str, Sequence[str]]:
        folder = self.options.path
        files = found(folder.glob("*.hdf5"), ".hdf5 files", folder)
        files = [file for file in files if file.stem not in self.options.left_out]
        return groups(self.options.name, [file.name for file in files], size)

    def clips(self, units: Sequence[str]) -> Iterator[NamedClip]:
        for unit in units:
            yield unit, partial(self._read, unit)

    def _read(self, unit: str) -> Episode:
        with h5py.File(regular(self.options.path / unit)) as file:
            camera = self.options.image_key or "cam0"
            actions = _actions(file)
            frames = itertools.islice(_frames(file[f"env/{camera}_video"]), len(actions) + 1)  # some go on without any
            return self.options.episode(frames, actions)


def _frames(video: Any) -> Iterator[np.ndarray]:
    whole = video.get("frames")
    attributes = (video["frame0"] if whole is None else whole).attrs
    if whole is not None:
        images = decode_video(whole[:].tobytes())
    else:
        images = (decode_image(video[f"frame{t}"][:].tobytes()) for t in range(len(video)))
    for image in images:
        yield image[:, :, ::-1] if attributes.get("image_format") in ("BGR", b"BGR") else image


def _actions(file: Any) -> np.ndarray:
    actions = file["policy/actions"][:].astype(np.float32)  # (T - 1, A)
    about = dict(file["metadata"].attrs)
    if actions.shape[1] == ACTIONS - 1 and about.get("primitives") in ("autograsp", b"autograsp"):
        low, high = (float(np.ravel(_bound(file, name))[-1]) for name in ("low_bound", "high_bound"))
        gripper = file["env/state"][1 : len(actions) + 1, -1]
        actions = np.column_stack([actions, np.where(gripper > (low + high) / 2, high, low)])
    return np.pad(actions, ((0, 0), (0, max(0, ACTIONS - actions.shape[1]))))[:, :ACTIONS]


def _bound(file: Any, name: str) -> np.ndarray:
    """Of every action; the files of different robots keep it in different places."""
    if name in file["metadata"].attrs:
        return file["metadata"].attrs[name]
    return (file["misc"] if name in file["misc"] else file["env"])[name][()]

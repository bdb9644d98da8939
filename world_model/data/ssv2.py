"""Something-Something v2: people's hands and things, without actions or rewards (Goyal et al., arXiv 1706.04261).

    <path>/<number>.webm  ...                    as downloaded, or
    <path>/<number>/000001.jpg  ...              a folder of frames a clip

`classes` keeps some of the 174 classes; it needs the list of what each clip shows, in <path> or beside it: either the
official labels.json with train.json and validation.json (also under their names with `something-something-v2-` in
front), or train_video_folder.txt and val_video_folder.txt (`<folder> <frames> <class>` a line).
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from world_model.api import Episode
from world_model.data.clips import DataError
from world_model.data.source import NamedClip, SourceOptions, decode_image, found, groups
from world_model.files import read_json, read_text, reading, regular

PREFIX = "something-something-v2-"
LISTS = 2**30  # bytes of a list of all clips


class SomethingV2:
    unit = "episode"

    def __init__(self, options: SourceOptions) -> None:
        self.options = options

    def shards(self, size: int) -> dict[str, Sequence[str]]:
        folder, classes = self.options.path, set(self.options.classes)
        everything = folder.iterdir() if folder.is_dir() else []
        clips = found(
            (entry for entry in everything if entry.stem.isdecimal() and (entry.suffix == ".webm" or entry.is_dir())),
            "clips (<number>.webm or <number>/)",
            folder,
        )
        if any(clip.suffix == ".webm" for clip in clips):
            from world_model.data.video import decode_video  # noqa: F401  (a missing PyAV shows now, not at every clip)
        if classes:
            shown = self._classes()
            clips = [clip for clip in clips if shown.get(clip.stem) in classes]
        return groups(self.options.name, [clip.name for clip in sorted(clips, key=lambda clip: int(clip.stem))], size)

    def clips(self, units: Sequence[str]) -> Iterator[NamedClip]:
        for unit in units:
            yield unit, partial(self._read, unit)

    def _read(self, unit: str) -> Episode:
        clip = self.options.path / unit
        if clip.is_dir():
            images = sorted(clip.glob("*.jpg"), key=lambda file: int(file.stem))
            return self.options.episode(decode_image(regular(image).read_bytes()) for image in images)
        return self.options.episode(_frames(clip))

    def _classes(self) -> dict[str, int]:
        """The class of each clip, by its number."""
        shown: dict[str, int] = {}
        for folder in (self.options.path, self.options.path.parent, self.options.path.parent / "labels"):
            for prefix in ("", PREFIX):
                if (labels := folder / f"{prefix}labels.json").exists():
                    with reading(labels, DataError):
                        numbers = {name: int(number) for name, number in read_json(labels).items()}
                    for part in ("train", "validation"):
                        if (file := folder / f"{prefix}{part}.json").exists():
                            with reading(file, DataError):
                                shown |= {clip["id"]: numbers[_template(clip)] for clip in read_json(file, LISTS)}
            for part in ("train", "val"):
                if (listed := folder / f"{part}_video_folder.txt").exists():
                    with reading(listed, DataError):
                        lines = [line.split() for line in read_text(listed, LISTS).splitlines()]
                        shown |= {Path(name).name: int(number) for name, _, number in lines}
        if not shown:
            raise DataError(f"path={self.options.path}: classes needs labels.json and train.json in it or beside it")
        return shown


def _template(clip: dict[str, str]) -> str:
    """It marks what was filled in with brackets, which the list of classes does not."""
    return clip["template"].replace("[", "").replace("]", "")


def _frames(clip: Path) -> Iterator[np.ndarray]:
    from world_model.data.video import decode_video

    return decode_video(clip)

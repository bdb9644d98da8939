"""Checkpoints that survive a kill at any instant.

    save(folder, frame, {"agent.safetensors": weights, "agent.pt": state, "state.json": counters})
    newest = latest(folder)                    # verified, or None when there is none yet
    agent.load_state(newest.load("agent.pt"))

A checkpoint is a folder `<frame, 9 digits>/`. It is written under a temporary name, every file is synced, and
only then it gets its name, so a folder with a proper name was once whole. `manifest.json` holds the size and
SHA-256 of every file, and of its own list of them, which finds what a disk or a user broke later (manifests of older
checkpoints lack the last). A file's ending says how it is stored:

    .safetensors   dict[str, Tensor]                 weights
    .pt            tensors, numbers, nested dicts    torch.save; read with weights_only, so never a pickle
    .json          plain numbers and text
"""

import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import safetensors.torch
import torch
from torch import Tensor

from mbrl.experiment.episodes import sync_folder
from world_model.files import READ_ERRORS, read_json, read_tensors, read_torch, reading, regular
from world_model.schema import UserError

KEEP = 2
NAME = re.compile(r"[0-9]{9,18}")
MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
REPLACED = f"{TEMPORARY}replaced-"
FULL = (errno.ENOSPC, errno.EDQUOT)
BROKEN = (errno.EISDIR, errno.ENOTDIR, errno.EIO)  # a folder in a file's place or the reverse, a bad sector


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk; its parts are read when they are asked for."""

    path: Path
    frame: int

    def load(self, name: str, device: torch.device | str = "cpu") -> Any:
        """The part saved as `name`, tensors on `device`. Raises UserError if there is no such part."""
        path = self.path / name
        if not path.exists():
            raise UserError(f"{self.path} has no {name}: it was saved by another kind of run")
        with reading(path, advice=f"remove {self.path}"):
            if path.suffix == ".safetensors":
                return read_tensors(path, device)
            return read_torch(path, device) if path.suffix == ".pt" else read_json(path)

    def restoring(self) -> AbstractContextManager[None]:
        """Around giving the parts back to what they were saved of. Raises UserError if they are of something else."""
        advice = "finish the run with the version that began it (git.json), or begin anew in another folder"
        return reading(self.path, advice=advice)


def save(folder: Path, frame: int, parts: Mapping[str, Any]) -> Checkpoint:
    """Write a checkpoint of `parts` (file name -> content) and keep the newest two.

    Raises UserError when the disk is full; what was saved before stays as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _restore(folder)
    _sweep(folder)
    temporary, final = folder / f"{TEMPORARY}{frame:09d}", folder / f"{frame:09d}"
    try:
        temporary.mkdir()
        manifest = {name: _write(temporary / name, content) for name, content in parts.items()}
        _write(temporary / MANIFEST, manifest | {MANIFEST: {"sha256": _digest(manifest)}})
        sync_folder(temporary)
        if final.exists():  # the same frame again: a damaged one, or one without the final evaluation
            os.rename(final, folder / f"{REPLACED}{frame:09d}")
        os.rename(temporary, final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _restore(folder)
        if error.errno not in FULL:
            raise
        kept = [path.name for path in _checkpoints(folder)]
        last = f"the last good one ({kept[-1]}) stays" if kept else "none was saved before"
        raise UserError(
            f"the disk is full: no checkpoint at frame {frame} in {folder}, {last}; make room and start again"
        ) from error
    _prune(folder)
    return Checkpoint(final, frame)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all what they were when saved; None if there never was one.

    A damaged one is named in a warning and the one before it is taken. Raises UserError if all are damaged.
    """
    _restore(folder)
    paths = _checkpoints(folder)
    damages: list[str] = []
    for path in reversed(paths):
        damage = _damage(path)
        if damage is None:
            for message in damages:
                warnings.warn(f"{message}; going back to {path.name}", stacklevel=2)
            return Checkpoint(path, int(path.name))
        damages.append(f"checkpoint {path} is damaged ({damage})")
    if damages:
        raise UserError(f"{damages[0]} and no older one is good: remove the run folder to start over")
    return None


def peek(folder: Path, name: str) -> Any:
    """The part `name` of the newest checkpoint in which it is whole, None without one; other parts are not hashed."""
    for path in reversed(_checkpoints(folder)):
        if (path / name).exists() and _damage(path, hashed={name}) is None:
            return Checkpoint(path, int(path.name)).load(name)
    return None


class _HashingWriter(io.RawIOBase):
    """A file that counts and hashes what passes through, and keeps the first error of the disk.

    torch.save can bury an OSError of the file below it under a RuntimeError, hence `error`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.hash, self.size = file, hashlib.sha256(), 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.hash.update(data)
        self.size += memoryview(data).nbytes
        return memoryview(data).nbytes


def _write(path: Path, content: Any) -> dict[str, Any]:
    """Write and sync one file; returns its entry in the manifest."""
    with open(path, "wb") as file:
        writer = _HashingWriter(file)
        try:
            _serialize(writer, path.suffix, content)
            file.flush()
        except (OSError, RuntimeError):
            if writer.error is not None:
                raise writer.error from None
            raise
        os.fsync(file.fileno())
    return {"size": writer.size, "sha256": writer.hash.hexdigest()}


def _serialize(writer: _HashingWriter, suffix: str, content: Any) -> None:
    if suffix == ".safetensors":
        tensors: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in content.items()}
        writer.write(safetensors.torch.save(tensors))
    elif suffix == ".pt":
        torch.save(content, cast(IO[bytes], writer))
    elif suffix == ".json":
        writer.write(json.dumps(content, indent=1, allow_nan=False).encode())
    else:
        raise ValueError(f"a checkpoint stores .safetensors, .pt and .json, not {suffix!r}")


def _digest(manifest: Mapping[str, Any]) -> str:
    """Of the manifest's entries for the parts."""
    lines = [f"{name} {entry['size']} {entry['sha256']}\n" for name, entry in sorted(manifest.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _damage(path: Path, hashed: Collection[str] | None = None) -> str | None:
    """What is wrong with a checkpoint's files, or None. Of files not among `hashed` (None: all) only sizes count."""
    try:
        manifest = read_json(path / MANIFEST)
        own = manifest.pop(MANIFEST, None)
        if not manifest or (own is not None and own["sha256"] != _digest(manifest)):
            return f"{MANIFEST} has changed since it was saved"
        # Hidden files are those of file managers and network disks.
        unnamed = {file.name for file in path.iterdir() if not file.name.startswith(".")} - {MANIFEST, *manifest}
        if unnamed:
            return f"{MANIFEST} does not name {min(unnamed)}"
        damages = (_changed(path / name, entry, hashed is None or name in hashed) for name, entry in manifest.items())
        return next(filter(None, damages), None)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        if error.errno not in BROKEN:
            raise
        return f"{Path(error.filename).name if error.filename else 'a file'} cannot be read: {error.strerror}"
    except READ_ERRORS:
        return f"{MANIFEST} cannot be read"


def _changed(path: Path, entry: Mapping[str, Any], hashed: bool) -> str | None:
    size = path.stat().st_size
    if size != entry["size"]:
        return f"{path.name} has {size} of {entry['size']} bytes"
    if hashed:
        with open(regular(path), "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{path.name} has changed since it was saved"
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Folders that are named like checkpoints, oldest first."""
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise UserError(f"{folder} is a file in the place of the checkpoints' folder: put the checkpoints back")
    return sorted(path for path in folder.iterdir() if path.is_dir() and NAME.fullmatch(path.name))


def _prune(folder: Path) -> None:
    """Drop all but the newest two that are complete; a broken one must not take a good one's place."""
    complete = [path for path in _checkpoints(folder) if _damage(path, hashed=()) is None]
    for path in _checkpoints(folder):
        if path not in complete[-KEEP:]:
            # Renamed first, so that a kill half-way never leaves a name that looks like a checkpoint.
            os.rename(path, folder / f"{TEMPORARY}old-{path.name}")
    _sweep(folder)


def _restore(folder: Path) -> None:
    """Give a checkpoint its name back if a save ended between taking it and giving it to the new one."""
    for path in folder.glob(f"{REPLACED}*"):
        final = folder / path.name.removeprefix(REPLACED)
        if not final.exists():
            os.rename(path, final)


def _sweep(folder: Path) -> None:
    """Remove what a killed or failed save left behind."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

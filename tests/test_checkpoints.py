"""Checkpoints: what goes in comes out; whatever happens to process or disk, a good one is left."""

import builtins
import errno
import io
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mbrl.experiment import checkpoints
from mbrl.experiment.checkpoints import latest, save
from mbrl.experiment.settings import UserError


def parts(value: int, size: int = 1000) -> dict[str, Any]:
    tensor = torch.full((size,), float(value))
    return {
        "agent.safetensors": {"weight": tensor},
        "agent.pt": {"step": value, "nested": {"moment": tensor + 1, "seeds": [2**100 + value]}},
        "counters.json": {"value": value},
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_round_trip(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    save(tmp_path, 1200, parts(7))
    checkpoint = latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.frame == 1200
    assert checkpoint.path.name == "000001200"
    assert torch.equal(checkpoint.load("agent.safetensors")["weight"], torch.full((1000,), 7.0))
    state = checkpoint.load("agent.pt")
    assert state["nested"]["seeds"] == [2**100 + 7]
    assert torch.equal(state["nested"]["moment"], torch.full((1000,), 8.0))
    assert checkpoint.load("counters.json") == {"value": 7}
    with pytest.raises(UserError, match=r"no world_model\.pt"):
        checkpoint.load("world_model.pt")


def test_no_pickles(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1, {"bad.pt": {"path": tmp_path}})
    with pytest.raises(UserError, match=r"bad\.pt cannot be read"):
        checkpoint.load("bad.pt")


def test_keeps_the_newest_two(tmp_path: Path) -> None:
    for frame in (100, 200, 300, 400):
        save(tmp_path, frame, parts(frame))
    assert names(tmp_path) == ["000000300", "000000400"]


def test_the_same_frame_again(tmp_path: Path) -> None:
    save(tmp_path, 100, parts(1))
    save(tmp_path, 100, parts(2))
    assert names(tmp_path) == ["000000100"]
    checkpoint = latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.load("counters.json") == {"value": 2}


@pytest.mark.parametrize("how", ["truncated", "missing", "flipped"])
@pytest.mark.parametrize("name", ["agent.safetensors", "agent.pt", "counters.json", "manifest.json"])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path: Path, name: str, how: str) -> None:
    save(tmp_path, 100, parts(1))
    save(tmp_path, 200, parts(2))
    damage(tmp_path / "000000200" / name, how)
    with pytest.warns(UserWarning, match=r"000000200 is damaged .*going back to 000000100"):
        checkpoint = latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.load("counters.json") == {"value": 1}
    # The damaged one does not take the place of a good one later on.
    if how == "truncated":
        save(tmp_path, 150, parts(3))
        assert names(tmp_path) == ["000000100", "000000150"]


def test_none_is_good(tmp_path: Path) -> None:
    save(tmp_path, 100, parts(1))
    damage(tmp_path / "000000100" / "agent.pt", "flipped")
    with pytest.raises(UserError, match=r"000000100 is damaged \(agent\.pt has changed"):
        latest(tmp_path)


def check_full_disk_leaves_the_last_good_one(folder: Path, size: int) -> None:
    with pytest.raises(UserError, match=r"disk is full: no checkpoint at frame 200 .*000000100\) stays"):
        save(folder, 200, parts(2, size))
    assert names(folder) == ["000000100"]
    checkpoint = latest(folder)
    assert checkpoint is not None
    assert checkpoint.load("agent.pt")["step"] == 1


@pytest.mark.parametrize("call", [0, 2, 4], ids=["first file", "third file", "folder"])
def test_disk_full_while_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    save(tmp_path, 100, parts(1))
    calls = iter(range(100))

    def fsync(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    check_full_disk_leaves_the_last_good_one(tmp_path, size=1000)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("size", [10, 100_000], ids=["at the flush", "inside torch.save"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".json"])
def test_disk_full_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, size: int) -> None:
    save(tmp_path, 100, parts(1))

    def open_full(path: Path, mode: str = "r") -> Any:
        full = "w" in mode and path.suffix == suffix
        return builtins.open("/dev/full" if full else path, mode)

    monkeypatch.setattr(checkpoints, "open", open_full, raising=False)
    check_full_disk_leaves_the_last_good_one(tmp_path, size)


class FullOnce(io.FileIO):
    """A file on a disk that is full for one write, and has room again when the file is closed."""

    failed = False

    def write(self, data: Any) -> int:
        if not self.failed and self.tell() > 500:
            self.failed = True
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_disk_full_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 100, parts(1))

    def open_full(path: Path, mode: str = "r") -> Any:
        return FullOnce(path, mode) if mode == "wb" and path.suffix == ".pt" else builtins.open(path, mode)

    monkeypatch.setattr(checkpoints, "open", open_full, raising=False)
    check_full_disk_leaves_the_last_good_one(tmp_path, size=1000)


def test_another_disk_error_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, 1, parts(1))
    assert names(tmp_path) == []


def test_disk_full_between_the_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoint of the same frame has lost its name and the new one has not got it yet."""
    save(tmp_path, 100, parts(1))
    rename = os.rename

    def full(source: Path, target: Path) -> None:
        if source.name == ".tmp-000000100":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UserError, match=r"disk is full: no checkpoint at frame 100 .*000000100\) stays"):
        save(tmp_path, 100, parts(2))
    assert names(tmp_path) == ["000000100"]


def save_forever(folder: Path, start: int) -> None:
    for value in range(start, 10**6):
        save(folder, value, parts(value, size=20_000))


def test_killed_at_any_instant(tmp_path: Path) -> None:
    """kill -9 in the middle of saving: the newest checkpoint is whole and no older than the last one seen."""
    delays = np.random.default_rng(0).uniform(0.005, 0.15, size=8)
    context = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds to start
    last = 0
    for delay in delays:
        process = context.Process(target=save_forever, args=(tmp_path, last + 1))
        process.start()
        time.sleep(delay)
        process.kill()
        process.join()
        checkpoint = latest(tmp_path)
        frame = checkpoint.frame if checkpoint else 0
        assert frame >= last
        if checkpoint:
            assert checkpoint.load("counters.json") == {"value": frame}
            assert checkpoint.load("agent.pt")["step"] == frame
        last = frame
    assert last > 0


def save_until_the_first_rename(folder: Path, frame: int) -> None:
    rename = os.rename

    def rename_and_die(source: Path, target: Path) -> None:
        rename(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    os.rename = rename_and_die
    save(folder, frame, parts(2))


@pytest.mark.parametrize("look_first", [True, False], ids=["latest", "save"])
def test_killed_while_replacing_the_same_frame(tmp_path: Path, look_first: bool) -> None:
    """The old one has lost its name, the new one has not got it yet: the old one is found, and not swept away."""
    save(tmp_path, 100, parts(1))
    process = multiprocessing.get_context("fork").Process(target=save_until_the_first_rename, args=(tmp_path, 100))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == [".tmp-000000100", ".tmp-replaced-000000100"]
    if look_first:
        checkpoint = latest(tmp_path)
        assert checkpoint is not None
        assert checkpoint.load("counters.json") == {"value": 1}
    save(tmp_path, 200, parts(3))
    assert names(tmp_path) == ["000000100", "000000200"]

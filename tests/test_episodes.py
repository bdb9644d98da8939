"""Episode files: whole or absent, and a damaged one is named and skipped."""

import errno
import os

import numpy as np
import pytest

from mbrl.experiment.episodes import EpisodeStore, EpisodeStoreError
from world_model import Episode


def episode(number, decisions=5, prefix=0):
    generator = np.random.default_rng(number)
    return Episode(
        generator.integers(0, 256, (prefix + decisions + 1, 3, 8, 8), dtype=np.uint8),
        generator.random((decisions, 2), dtype=np.float32),
        generator.random(decisions, dtype=np.float32),
        terminated=number % 2 == 1,
        prefix=prefix,
        successes=(generator.random(decisions) < 0.5).astype(np.float32),
        seed=2**31 - 1 - number,
    )


def assert_equal(a, b):
    for name in ("frames", "actions", "rewards", "successes"):
        assert getattr(a, name).dtype == getattr(b, name).dtype
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.terminated, a.prefix, a.seed) == (b.terminated, b.prefix, b.seed)


def test_round_trip(tmp_path):
    store = EpisodeStore(tmp_path / "replay")
    for number in range(3):
        store.save(number, episode(number, prefix=number))
    assert store.indices() == [0, 1, 2]
    for number, loaded in enumerate(store.load(range(3))):
        assert_equal(loaded, episode(number, prefix=number))
    assert loaded.terminated is False


def test_a_file_from_before_successes_and_seeds_were_recorded(tmp_path):
    store, written = EpisodeStore(tmp_path), episode(0, prefix=2)
    fields = {name: getattr(written, name) for name in ("frames", "actions", "rewards", "terminated", "prefix")}
    np.savez_compressed(store.path(0), **fields)
    (loaded,) = store.load([0])
    assert loaded.successes is None
    assert loaded.seed is None
    np.testing.assert_array_equal(loaded.frames, written.frames)
    store.save(1, loaded)  # and it can be written again
    (again,) = store.load([1])
    assert again.successes is None
    assert again.seed is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "garbage", "missing", "mismatched", "successes"])
def test_a_damaged_file_is_skipped_by_name(tmp_path, damage):
    store = EpisodeStore(tmp_path)
    for number in range(3):
        store.save(number, episode(number))
    path = store.path(1)
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 3] ^= 0xFF
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "garbage":
        path.write_bytes(b"no episode at all" * 50)
    elif damage == "missing":
        path.unlink()
    elif damage == "successes":
        store.save(1, episode(1)._replace(successes=np.zeros(2, np.float32)))
    else:
        store.save(1, episode(1)._replace(actions=np.zeros((2, 2), np.float32)))
    with pytest.warns(UserWarning, match="000001.npz") as warned:
        loaded = list(store.load(range(3)))
    assert len(warned) == 1, [str(w.message) for w in warned]
    assert len(loaded) == 2
    assert_equal(loaded[0], episode(0))
    assert_equal(loaded[1], episode(2))


def test_truncate_removes_what_came_after_a_checkpoint(tmp_path):
    store = EpisodeStore(tmp_path)
    for number in range(5):
        store.save(number, episode(number))
    store.truncate(3)
    assert store.indices() == [0, 1, 2]


def test_leftovers_of_a_crash_are_removed_and_never_read(tmp_path):
    (tmp_path / ".000000.npz.tmp").write_bytes(b"half an episode")
    store = EpisodeStore(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert store.indices() == []


def test_a_full_disk_leaves_the_earlier_episodes_and_nothing_else(tmp_path, monkeypatch):
    store = EpisodeStore(tmp_path)
    store.save(0, episode(0))

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(EpisodeStoreError, match=r"000001\.npz: No space left .*make room .*run the same command"):
            store.save(1, episode(1))
    assert [path.name for path in tmp_path.iterdir()] == ["000000.npz"]
    assert_equal(next(store.load([0])), episode(0))

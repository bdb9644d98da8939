"""Equal seeds, equal bits: whether a run is evaluated often or once, in one go or killed and started again."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest

from mbrl import checkpoints as checkpoints_module
from mbrl import mbpo, rollout
from mbrl.collector import Collector
from tiny import different, train, weights

EVERY = 40  # checkpoint_every_frames of a tiny run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return train(tmp_path_factory.mktemp("whole"))


def test_equal_seeds_give_equal_weights(whole: Path, run_root: Path) -> None:
    again = train(run_root)
    assert different(whole, again) == []
    names = {name.split("/")[0] for name in weights(again)}
    assert names == {"agent", "world_model"}
    for name in ("eval.csv", "train.csv"):
        without_time = [
            [line.rsplit(",", 1)[0] for line in (run / name).read_text().splitlines()] for run in (whole, again)
        ]
        assert without_time[0] == without_time[1]


def test_different_seeds_give_different_weights(whole: Path, run_root: Path) -> None:
    other = train(run_root, "seed=2")
    changed = different(whole, other)
    assert any(name.startswith("agent/actor") for name in changed)
    assert any(name.startswith("world_model/transformer") for name in changed)
    assert any(name.startswith("world_model/tokenizer") for name in changed)


def test_evaluating_changes_no_weight(run_root: Path, whole: Path) -> None:
    """Often, with more episodes and with videos, against once at the end."""
    often = train(run_root / "often", "eval_every_frames=20", "num_eval_episodes=2", "video=true")
    assert len((often / "eval.csv").read_text().splitlines()) == 1 + 6  # 60, 80, ... 160
    assert different(often, whole) == []
    once = train(run_root / "once", "eval_every_frames=100000")
    assert len((once / "eval.csv").read_text().splitlines()) == 1 + 1
    assert different(often, once) == []


# -- killed and started again ------------------------------------------------------------------------------------------


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_rollout(number: int) -> None:
    """Dies when the agent is asked for the `number`-th imagined action."""
    calls, to_uint8 = [0], rollout.to_uint8

    def counted(pictures):
        calls[0] += 1
        if calls[0] == number:
            kill_me()
        return to_uint8(pictures)

    rollout.to_uint8 = counted


def in_a_checkpoint(number: int) -> None:
    """Dies half-way through a file of the `number`-th checkpoint."""
    calls, save, write = [0], checkpoints_module.save, checkpoints_module._HashingWriter.write

    def counted(*arguments, **keywords):
        calls[0] += 1
        return save(*arguments, **keywords)

    def half(writer, data):
        data = memoryview(data).cast("B")
        if calls[0] == number and len(data) > 1000:
            write(writer, data[: len(data) // 2])
            writer.file.flush()
            kill_me()
        return write(writer, data)

    checkpoints_module.save = counted
    checkpoints_module._HashingWriter.write = half


def in_an_update(number: int) -> None:
    """Dies right after the `number`-th update of the agent."""
    calls, learn_to_act = [0], mbpo.MBPO.learn_to_act

    def counted(self, batch):
        learn_to_act(self, batch)
        calls[0] += 1
        if calls[0] == number:
            kill_me()

    mbpo.MBPO.learn_to_act = counted


def train_until_killed(run_root: Path, arrange: Callable[[], None], frame: "Synchronized[int]") -> None:
    """In a process of its own: train, keep `frame` up to date, and die as arranged."""
    act = Collector.act

    def watched(self, agent):
        act(self, agent)
        frame.value = self.frame

    Collector.act = watched
    arrange()
    train(run_root)


def last_start(folder: Path) -> int:
    """The frame that the last start of a run continued from."""
    return json.loads((folder / "git.json").read_text())["starts"][-1]["frame"]


def test_a_killed_run_ends_bit_equal(whole: Path, run_root: Path) -> None:
    context = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds to start
    frame = context.Value("i", 0)
    kills = (
        ("in a checkpoint", partial(in_a_checkpoint, 3)),
        ("in a rollout", partial(in_a_rollout, 5)),
        ("in an update", partial(in_an_update, 8)),
    )
    reached = []
    for name, arrange in kills:
        process = context.Process(target=train_until_killed, args=(run_root, arrange, frame))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, name
        [folder] = (path.parent for path in run_root.glob("**/.lock"))
        if reached:
            assert 0 < last_start(folder) <= reached[-1]
            assert reached[-1] - last_start(folder) <= EVERY
        reached.append(frame.value)
    assert reached == sorted(set(reached)), "each start came further than the one before"
    assert list((folder / "checkpoints").glob(".tmp-*")) == [], "what the kill left was swept away"
    train(run_root)
    assert 0 < reached[-1] - last_start(folder) <= EVERY
    assert different(whole, folder) == []
    for name in ("eval.csv", "train.csv"):
        frames = [[line.split(",")[:3] for line in (run / name).read_text().splitlines()] for run in (whole, folder)]
        assert frames[0] == frames[1]
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, folder)]
    for line in (*lines[0], *lines[1]):
        del line["wall_time_s"]
    assert lines[0] == lines[1]

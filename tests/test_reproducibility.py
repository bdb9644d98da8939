"""Equal seeds, equal bits: whether a run is evaluated often or once, in one go or killed and started again."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch
from contents import unequal
from tiny import different, train, weights

from mbrl import rollout
from mbrl.collector import Collector
from mbrl.experiment import checkpoints as checkpoints_module
from mbrl.session import Session

EVERY = 40  # checkpoint_every_frames of a tiny run


def test_equal_seeds_give_equal_weights(finished: Path, run_root: Path) -> None:
    again = train(run_root)
    assert different(finished, again) == []
    names = {name.split("/")[0] for name in weights(again)}
    assert names == {"agent", "world_model"}
    for name in ("eval.csv", "train.csv"):
        without_time = [
            [line.rsplit(",", 1)[0] for line in (run / name).read_text().splitlines()] for run in (finished, again)
        ]
        assert without_time[0] == without_time[1]


def test_different_seeds_give_different_weights(finished: Path, run_root: Path) -> None:
    other = train(run_root, "seed=2")
    changed = different(finished, other)
    assert any(name.startswith("agent/actor") for name in changed)
    assert any(name.startswith("world_model/transformer") for name in changed)
    assert any(name.startswith("world_model/tokenizer") for name in changed)


def test_evaluating_changes_no_weight(run_root: Path, finished: Path) -> None:
    """Often, with more episodes and with videos, against once at the end."""
    often = train(run_root / "often", "eval_every_frames=20", "num_eval_episodes=2", "video=true")
    assert len((often / "eval.csv").read_text().splitlines()) == 1 + 6  # 60, 80, ... 160
    assert different(often, finished) == []
    once = train(run_root / "once", "eval_every_frames=100000")
    assert len((once / "eval.csv").read_text().splitlines()) == 1 + 1
    assert different(often, once) == []


def test_two_threads_are_as_reproducible_as_one(run_root: Path) -> None:
    try:
        plain = train(run_root / "plain", "threads=2")
        often = train(run_root / "often", "threads=2", "eval_every_frames=20", "log_every_frames=60")
    finally:
        torch.set_num_threads(1)
    assert different(plain, often) == []


# -- killed and started again ------------------------------------------------------------------------------------------


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_rollout(number: int) -> None:
    """Dies when the agent is asked for the `number`-th imagined action."""
    calls, to_uint8 = [0], rollout.to_uint8

    def counted(images):
        calls[0] += 1
        if calls[0] == number:
            kill_me()
        return to_uint8(images)

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
    calls, learn_to_act = [0], Session.learn_to_act

    def counted(self, batch):
        learn_to_act(self, batch)
        calls[0] += 1
        if calls[0] == number:
            kill_me()

    Session.learn_to_act = counted


def train_until_killed(run_root: Path, arrange: Callable[[], None], *overrides: str) -> int:
    """Train in a process of its own that dies as arranged; returns the frame it had reached."""
    context = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds to start
    frame = context.Value("i", 0)
    process = context.Process(target=train_and_die, args=(run_root, arrange, frame, *overrides))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return frame.value


def train_and_die(run_root: Path, arrange: Callable[[], None], frame: "Synchronized[int]", *overrides: str) -> None:
    act = Collector.act

    def watched(self, agent):
        act(self, agent)
        frame.value = self.frame

    Collector.act = watched
    arrange()
    train(run_root, *overrides)


def last_start(folder: Path) -> int:
    """The frame that the last start of a run continued from."""
    return json.loads((folder / "git.json").read_text())["starts"][-1]["frame"]


def test_a_killed_run_ends_bit_equal(finished: Path, run_root: Path) -> None:
    reached: list[int] = []
    for arrange in (partial(in_a_checkpoint, 3), partial(in_a_rollout, 14), partial(in_an_update, 8)):
        frame = train_until_killed(run_root, arrange)
        [folder] = (path.parent for path in run_root.glob("**/.lock"))
        if reached:
            assert last_start(folder) > 0
            assert 0 <= reached[-1] - last_start(folder) <= EVERY
        reached.append(frame)
    assert reached == sorted(set(reached)), "each start came further than the one before"
    assert list((folder / "checkpoints").glob(".tmp-*")) == [], "what the kill left was swept away"
    train(run_root)
    assert 0 < reached[-1] - last_start(folder) <= EVERY
    assert unequal(finished, folder) == []


def test_killed_before_the_agent_acted(tmp_path: Path) -> None:
    """In the first dreams, under the random policy; the checkpoint before lies among the seed frames."""
    overrides = ("num_seed_frames=60", "num_train_frames=80")
    assert train_until_killed(tmp_path / "killed", partial(in_a_rollout, 1), *overrides) == 60
    folder = train(tmp_path / "killed", *overrides)
    assert last_start(folder) == 40
    assert different(folder, train(tmp_path / "whole", *overrides)) == []

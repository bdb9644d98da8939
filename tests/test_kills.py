"""Killed at any moment and started again, all that is stored is what it would have been: to the last bit.

A few kills run with all tests; `make test ARGS="tests/test_kills.py --whole"` does 30 of MBPO, 10 of DreamerV3 and 10
of a pre-training.
"""

import contextlib
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from contents import unequal
from fuzzing import noise
from tiny import train

from mbrl.experiment.run import RunFinished
from mbrl.experiment.settings import load_plain
from mbrl.pretrain import pretrain

DREAMER = ("agent=dreamerv3", "dreamerv3.batch_length=8", "dreamerv3.batch_size=2")
PRETRAINING = (
    "preset=smoke device=cpu threads=1 tokenizer_updates=6 transformer_updates=4 validate_every_updates=5 horizon=2 "
    "checkpoint_every_updates=2 cached_clips=6 learner.batch_size=2 learner.tokenizer_batch_size=2 "
    "learner.segment_length=4 learner.tokenizer_span=4 learner.quantize_after=1 learner.revive_codes_until=0"
).split()


def mbpo(folder: Path) -> None:
    train(folder)


def dreamer(folder: Path) -> None:
    train(folder, *DREAMER)


def pretraining(folder: Path) -> None:
    overrides = [*PRETRAINING, f"data={folder.parent / 'data'}", f"out={folder}"]
    pretrain.pretrain(load_plain(pretrain.PretrainSettings, "pretrain", overrides))


@pytest.mark.parametrize(
    ("work", "kills", "kills_whole"),
    [(mbpo, 3, 30), (dreamer, 1, 10), (pretraining, 1, 10)],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_killed_at_random_moments(
    tmp_path: Path, whole: bool, work: Callable[[Path], None], kills: int, kills_whole: int
) -> None:
    noise(tmp_path / "data")
    started = time.monotonic()
    assert not killed(partial(work, tmp_path / "whole"), 1000)
    seconds, generator, done, number = time.monotonic() - started, random.Random(0), 0, 0
    while done < (kills_whole if whole else kills):
        number += 1
        folder = tmp_path / f"killed-{number}"
        while killed(partial(work, folder), generator.uniform(0, seconds)):
            done += 1
        assert unequal(place(folder), place(tmp_path / "whole")) == [], f"after {done} kills"


def place(folder: Path) -> Path:
    """Of the run, or of the pre-training, in a folder."""
    [lock] = folder.glob("**/.lock")
    return lock.parent


def killed(work: Callable[[], object], after_s: float) -> bool:
    """Do it in a process of its own, which is killed after so many seconds unless it has ended by then."""
    process = multiprocessing.get_context("fork").Process(
        target=to_its_end, args=(work,)
    )  # a fresh one would take seconds
    process.start()
    process.join(after_s)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def to_its_end(work: Callable[[], object]) -> None:
    with contextlib.suppress(RunFinished):  # killed behind its last checkpoint
        work()

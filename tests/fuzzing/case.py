"""A case of the fuzz tests, and what a good answer to it is."""

import contextlib
import io
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fuzzing import damage
from mbrl.experiment.command import LONGEST, command

SECONDS = 10  # of computing that an answer takes at most
PATIENCE_S = 120  # of the clock, for one that waits for something


class Case(NamedTuple):
    name: str
    call: Callable[[], object]
    refused: bool = False  # it must end in an error
    says: str = ""  # a part of the line, if there is one


class Scene(NamedTuple):
    """Folders with one of each stored thing; `empty` is for what is made."""

    run: Path  # of tests/tiny.py, cut off
    model: Path
    onestep: Path
    data: Path
    pretraining: Path
    empty: Path


def judge(case: Case) -> str | None:
    """What is wrong with the answer to a case, or None."""
    out, err, code, started = io.StringIO(), io.StringIO(), 0, time.process_time()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE_S)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            command(lambda _: case.call() and None)
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException as error:  # noqa: BLE001, this is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:150]!r} at {Path(last.filename).name}:{last.lineno}"
    finally:
        signal.alarm(0)
    if Path(damage.MARK).exists():
        Path(damage.MARK).unlink()
        return "a stored file was run as a program"
    if damage.SECRET in out.getvalue() + err.getvalue():
        return "it shows a variable of the environment"
    lines = [line for line in err.getvalue().splitlines() if line.startswith("error: ")]
    if time.process_time() - started > SECONDS:
        return f"it took {time.process_time() - started:.0f} s"
    if code == 0:
        return f"it was accepted: {out.getvalue()[-200:]!r}" if case.refused else None
    if code != 2 or len(lines) != 1 or not err.getvalue().endswith(f"{lines[0]}\n"):
        return f"exit code {code} and {err.getvalue()[-300:]!r}"
    if len(lines[0]) > LONGEST or not lines[0].isprintable():
        return f"its line is {lines[0]!r}"
    if case.says not in lines[0]:
        return f"it does not say {case.says!r}: {lines[0]}"
    return None


def _too_long(*_: object) -> None:
    raise TimeoutError("no answer")


PRETRAINING = (
    "preset=smoke device=cpu threads=1 tokenizer_updates=3 transformer_updates=2 validate_every_updates=100 horizon=3 "
    "checkpoint_every_updates=2 cached_clips=4 learner.batch_size=2 learner.tokenizer_batch_size=2 "
    "learner.segment_length=5 learner.tokenizer_span=5 learner.quantize_after=1 learner.revive_codes_until=0"
).split()
PREDICTION = "part=all clips=2 samples=1 horizon=2 device=cpu name=x".split()


def pretraining(scene: Scene, **changed: Any) -> list[str]:
    """The overrides of one as small as they get."""
    return _merged(PRETRAINING, {"data": scene.data, "out": scene.empty / "pretraining"} | changed)


def prediction(scene: Scene, **changed: Any) -> list[str]:
    return _merged(PREDICTION, {"model": scene.model, "data": scene.data} | changed)


def comparison(scene: Scene, **changed: Any) -> list[str]:
    return _merged(["reps=100", "out=reports", "name=x"], {"runs": f"[{scene.run}]"} | changed)


def _merged(overrides: list[str], changed: dict[str, Any]) -> list[str]:
    values = dict(word.split("=", 1) for word in overrides) | changed
    return [f"{key}={value}" for key, value in values.items()]

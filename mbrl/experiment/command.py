"""What every `python -m mbrl.<verb>` shares: overrides in, one clear line out when something can't be done."""

import ctypes
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

import agents
import envs
from mbrl.experiment import interrupts
from mbrl.experiment.checkpoints import FULL
from mbrl.experiment.episodes import EpisodeStoreError
from mbrl.experiment.run import RunFinished
from mbrl.experiment.settings import HelpAsked, UserError, first_line
from mbrl.experiment.usage import page
from mbrl.replay import ReplayError
from world_model import WeightsError
from world_model.data import DataError

# Errors that a user can put right; each says what is wrong and what to do in one line.
USER_ERRORS = (
    UserError,
    EpisodeStoreError,
    ReplayError,
    WeightsError,
    DataError,
    agents.InvalidConfig,
    agents.StateMismatch,
    envs.ExpertFailed,
    envs.InvalidSetting,
    envs.MissingGL,
    envs.MissingPackage,
    envs.NoExpert,
    envs.UnknownTask,
)
LONGEST = 400  # characters of an error line


def command(main: Callable[[list[str]], None]) -> None:
    """Run an entry point on the overrides of the command line.

    `--help` among them prints what the verb does and its keys (see `mbrl/experiment/usage.py`).
    Exit codes: 0 done, or nothing left to do; 2 after `error: <line>`; 130 when stopped by Ctrl-C, SIGTERM or SIGHUP.
    """
    interrupts.in_command()
    warnings.formatwarning = _one_line
    keep_memory()
    show_every_name()
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except HelpAsked as asked:
        print(page(Path(str(sys.modules[main.__module__].__file__)), sys.argv[1:], asked))
    except RunFinished as finished:
        print(finished)
    except USER_ERRORS as error:
        fail(str(error))
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
    except (OSError, MemoryError, RuntimeError) as error:
        if (line := of_the_machine(error)) is None:
            raise
        fail(line)
    except KeyboardInterrupt as stop:
        close_bars()
        behind_ctrl_c = "\n" if sys.stderr.isatty() else ""
        what = stop.args[0] if stop.args else "the same command continues from the last checkpoint"
        print(f"{behind_ctrl_c}stopped; {what}", file=sys.stderr)
        sys.exit(interrupts.STOPPED)


def fail(message: str) -> NoReturn:
    """End with exit code 2 and one line; of a long message the middle is left out."""
    close_bars()
    line = f"error: {printable(' '.join(message.split()))}"
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[5 - LONGEST // 2 :]}"
    print(line, file=sys.stderr)
    sys.exit(2)


def printable(text: str) -> str:
    """What a terminal would obey, or cannot show, as an escape."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def of_the_machine(error: OSError | MemoryError | RuntimeError) -> str | None:
    """The line of an error of the disk or of the memory, for which torch has a RuntimeError; None of any other."""
    if isinstance(error, OSError):
        if error.errno in FULL:
            return "the disk is full; make room and run the same command again to continue"
        what = error.strerror or str(error)
        return what if error.filename is None else f"{error.filename} cannot be used: {what}"
    words = ("allocate memory", "not enough memory", "size calculation overflowed")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words):
        return f"there is not enough memory: {first_line(error)}; lower a batch size, an image size or a buffer"
    return str(error) if str(error).startswith("Symlink loop") else None  # as pathlib says it


def show_every_name() -> None:
    """Also one with letters that the terminal does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def close_bars() -> None:
    """End the lines of progress bars that what was raised has left open, the innermost first."""
    for bar in sorted(tqdm._instances, key=lambda bar: -abs(bar.pos)):  # type: ignore[attr-defined]
        bar.close()
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")  # what an inner bar, closed after the outer one, has left on the line


def keep_memory() -> None:
    """Have glibc keep freed memory for the next update instead of handing it back to the kernel; elsewhere nothing.

    On a CPU, torch takes and frees the same large tensors at every update, and each time the kernel maps and clears
    their pages anew: about 7,000 page faults an update of the agent of `small`, and 5 to 10 % of its time.
    """
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    trim_threshold, mmap_max = -1, -4  # glibc's malloc.h
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning without the place in the source that it came from."""
    return f"warning: {message}\n"

"""What every `python -m mbrl.<verb>` shares: overrides in, one clear line out when something can't be done."""

import ctypes
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

import agents
import envs
from mbrl.experiment import interrupts
from mbrl.experiment.checkpoints import FULL
from mbrl.experiment.episodes import EpisodeStoreError
from mbrl.experiment.run import RunFinished
from mbrl.experiment.settings import HelpAsked, UserError
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
    try:
        main(sys.argv[1:])
    except HelpAsked as asked:
        print(page(Path(str(sys.modules[main.__module__].__file__)), sys.argv[1:], asked))
    except RunFinished as finished:
        print(finished)
    except USER_ERRORS as error:
        fail(str(error))
    except OSError as error:
        if error.errno not in FULL:
            raise
        fail("the disk is full; make room and run the same command again to continue")
    except KeyboardInterrupt:
        close_bars()
        behind_ctrl_c = "\n" if sys.stderr.isatty() else ""
        print(f"{behind_ctrl_c}stopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(interrupts.STOPPED)


def fail(message: str) -> NoReturn:
    """End with exit code 2 and one line; of a long message the middle is left out."""
    close_bars()
    line = f"error: {' '.join(message.splitlines())}"
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[5 - LONGEST // 2 :]}"
    print(line, file=sys.stderr)
    sys.exit(2)


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

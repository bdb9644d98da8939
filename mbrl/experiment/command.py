"""What every `python -m mbrl.<verb>` shares: overrides in, one clear line out when something can't be done."""

import ctypes
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import agents
import envs
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


def command(main: Callable[[list[str]], None]) -> None:
    """Run an entry point on the overrides of the command line.

    `--help` among them prints what the verb does and its keys (see `mbrl/experiment/usage.py`).
    Exit codes: 0 done, or nothing left to do; 2 after `error: <line>`; 130 when stopped from the keyboard.
    """
    warnings.formatwarning = _one_line
    keep_memory()
    try:
        main(sys.argv[1:])
    except HelpAsked as asked:
        print(page(Path(str(sys.modules[main.__module__].__file__)), sys.argv[1:], asked))
    except RunFinished as finished:
        print(finished)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print("error: the disk is full; make room and run the same command again to continue", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)


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

"""How a command is stopped: Ctrl-C, SIGTERM (`kill`, Slurm, `timeout`) and SIGHUP (a closed terminal) do the same.

Imports nothing slow: `mbrl/__init__.py` calls `before_imports` ahead of torch.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPED = 130  # the exit code, after whichever signal
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], object]


def before_imports() -> None:
    """While a command is imported there is nothing to put in order: a signal ends the process, with one line."""
    _handle(_end)


def in_command() -> None:
    """From now on a signal raises KeyboardInterrupt; of the second and third kind only the first one does."""
    _handle(_interrupt)


@contextmanager
def ignored_by_children() -> Iterator[None]:
    """Ctrl-C, which all processes of a terminal are sent, is left to this one by those that it starts meanwhile."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _handle(handler: Handler) -> None:
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it, and a shell for jobs in the background
            signal.signal(number, handler)


def _end(*_: object) -> None:
    os.write(2, b"stopped before it began\n")
    os._exit(STOPPED)


def _interrupt(number: int, _: FrameType | None) -> None:
    # A closed terminal is told to a command by the shell and by make: the second must not disturb the end.
    for other in STOPPING:
        if other != signal.SIGINT:
            signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt

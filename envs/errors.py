"""What a user can get wrong about an environment: one clear line each."""

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path

# How pip is called for the environment that runs: make leaves its .venv inactive.
PIP = ".venv/bin/pip" if Path(sys.prefix).name == ".venv" else "pip"


class UnknownTask(ValueError):
    """No task has this name."""


class InvalidSetting(ValueError):
    """A keyword of `envs.make` has a value that this task cannot take."""


class InvalidAction(ValueError):
    """An action of the wrong shape, or with NaN or infinity in it."""


class EpisodeOver(RuntimeError):
    """`step` was called before the first `reset`, or after the end of an episode."""


class MissingGL(RuntimeError):
    """No OpenGL library that can draw without a screen was found."""


class MissingPackage(RuntimeError):
    """The simulator of a suite is not installed."""


class NoExpert(ValueError):
    """The task has no scripted expert to take demonstrations from."""


class ExpertFailed(RuntimeError):
    """The scripted expert succeeded too rarely to collect the demonstrations that were asked for."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the valid name most like `name`, or "" when none is alike."""
    matches = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""

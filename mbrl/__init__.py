"""Training: the loops, what they stand on, and the commands (`python -m mbrl.<verb>`, `ivideogpt-mbrl <verb>`)."""

import sys
from pathlib import Path

from mbrl.experiment import interrupts

__version__ = "0.1.0"
COMMAND = "ivideogpt-mbrl"

# Python calls it -m while it looks for the verb. A library leaves signals alone.
if sys.argv[0] == "-m" or Path(sys.argv[0]).name == COMMAND:
    interrupts.before_imports()


def run() -> None:
    """What the command `ivideogpt-mbrl` does."""
    try:
        from mbrl.__main__ import start
    except ModuleNotFoundError as error:
        sys.exit(f"error: the commands need {error.name} and more: pip install '{COMMAND}[metaworld]', or [train]")
    start()

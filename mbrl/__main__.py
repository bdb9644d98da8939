"""The list of commands: python -m mbrl; each of them: ivideogpt-mbrl <verb> key=value ..."""

import runpy
import sys
from pathlib import Path

from mbrl.experiment.command import command
from mbrl.experiment.settings import HELP, UserError, nearest
from mbrl.experiment.usage import verbs


def main(overrides: list[str]) -> None:
    found = dict(verbs(Path(__file__).parent))
    for override in overrides:
        if override not in HELP:
            hint = f": write python -m mbrl.{override}" if override in found else nearest(override, found)
            raise UserError(f"python -m mbrl {override} is no command{hint}")
    for name, line in found.items():
        print(f"python -m mbrl.{name:<10} {line}")
    print("\n--help behind any of them shows its keys with their values; make help lists the same in short")


def start() -> None:
    """`ivideogpt-mbrl <verb> ...` is `python -m mbrl.<verb> ...`; without a verb it is the list."""
    if len(sys.argv) > 1 and sys.argv[1] in dict(verbs(Path(__file__).parent)):
        runpy.run_module(f"mbrl.{sys.argv.pop(1)}", run_name="__main__", alter_sys=True)
    else:
        command(main)


if __name__ == "__main__":
    command(main)

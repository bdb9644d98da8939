"""The list of commands: python -m mbrl."""

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


if __name__ == "__main__":
    command(main)

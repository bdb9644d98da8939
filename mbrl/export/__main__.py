"""Recorded episodes or dreams as a LeRobot dataset: `make export RUN=<folder>`, `python -m mbrl.export key=value`."""

from mbrl.experiment.command import command
from mbrl.export.export import main

if __name__ == "__main__":
    command(main)

"""Studies of a world model, each a table: `make study NAME=<study>`, `python -m mbrl.study key=value ...`."""

from mbrl.experiment.command import command
from mbrl.study.study import main

if __name__ == "__main__":
    command(main)

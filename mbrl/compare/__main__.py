"""Compare runs: `make compare [TASKS=...] [RUNS=...] [NAME=...]`, python -m mbrl.compare key=value ..."""

from mbrl.compare.compare import main
from mbrl.experiment.command import command

if __name__ == "__main__":
    command(main)

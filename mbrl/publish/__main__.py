"""Keep of a run what others need of it: `make publish RUN=<folder>`, `python -m mbrl.publish key=value ...`."""

from mbrl.experiment.command import command
from mbrl.publish.publish import main

if __name__ == "__main__":
    command(main)

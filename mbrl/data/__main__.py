"""Fill the training format with video to pre-train on: `make data`, `python -m mbrl.data key=value ...`."""

from mbrl.data.data import main
from mbrl.experiment.command import command

if __name__ == "__main__":
    command(main)

"""Pre-train a world model on recorded video: `make pretrain`, `python -m mbrl.pretrain key=value ...`."""

from mbrl.experiment.command import command
from mbrl.pretrain.pretrain import main

if __name__ == "__main__":
    command(main)

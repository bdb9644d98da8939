"""Drive a dream and the simulator beside it on a page: `make play TASK=...`, `make watch TASK=...`."""

from mbrl.experiment.command import command
from mbrl.play.play import main

if __name__ == "__main__":
    command(main)

"""A page on which a person drives a dream and the simulator beside it, or watches: `make play`, `make watch`."""

from mbrl.experiment.command import command
from mbrl.play.play import main

if __name__ == "__main__":
    command(main)

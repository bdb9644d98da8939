"""Many runs with one command: `make sweep TASK=coffee-push,hammer AGENT=mbpo,drqv2 SEEDS=1-5 JOBS=2`."""

from mbrl.experiment.command import command
from mbrl.sweep.sweep import main

if __name__ == "__main__":
    command(main)

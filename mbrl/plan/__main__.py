"""Reach goals by planning in a world model: `make plan TASK=reach GOAL=expert MODEL=<folder>`."""

from mbrl.experiment.command import command
from mbrl.plan.plan import main

if __name__ == "__main__":
    command(main)

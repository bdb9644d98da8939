"""What this machine has, and what it lacks: `python -m mbrl.doctor [key=value ...]`."""

from mbrl.doctor.doctor import main
from mbrl.experiment.command import command

if __name__ == "__main__":
    command(main)

"""Many runs with one command: `make sweep TASK=coffee-push,hammer AGENT=mbpo,drqv2 SEEDS=1-5 JOBS=2`."""

import signal

from mbrl.experiment.command import command
from mbrl.sweep.sweep import main, stop

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)  # a sweep that is ended from outside must not leave its runs behind
    command(main)

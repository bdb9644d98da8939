"""Video prediction: `make predict MODEL=<folder> DATA=<folder>`, `python -m mbrl.predict key=value ...`."""

from mbrl.experiment.command import command
from mbrl.predict.predict import main

if __name__ == "__main__":
    command(main)

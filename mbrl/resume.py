"""Continue the run of task, agent and seed with the config that it was started with: python -m mbrl.resume task=..."""

from mbrl.experiment.command import command
from mbrl.experiment.run import stored_settings
from mbrl.experiment.settings import load, typed_keys
from mbrl.train import train


def main(overrides: list[str]) -> None:
    train(stored_settings(load(overrides), typed_keys(overrides)))


if __name__ == "__main__":
    command(main)

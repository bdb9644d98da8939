"""Train an agent, or continue a run that was cut off: python -m mbrl.train task=coffee-push [key=value ...]

Every key stands in configs/config.yaml. The run's folder is runs/<task>/<agent>[-<variant>]/<seed>.
"""

from mbrl.command import command
from mbrl.dreamer import Dreamer
from mbrl.mbpo import MBPO
from mbrl.online import Online
from mbrl.run import Run
from mbrl.settings import Settings, load
from mbrl.trainer import Trainer

LOOPS: dict[str, type[Trainer]] = {"mbpo": MBPO, "dreamerv3": Dreamer}  # every other agent learns online


def train(settings: Settings) -> None:
    with Run.open(settings) as run:
        loop = LOOPS.get(settings.agent, Online)(run)
        try:
            loop.train()
        except (ValueError, RuntimeError):
            loop.settle()
            run.flush(loop.frame)  # when a loss broke first, name it rather than the action or the draw that it spoilt
            raise
        finally:
            loop.close()


def main(words: list[str]) -> None:
    train(load(words))


if __name__ == "__main__":
    command(main)

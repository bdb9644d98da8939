"""`mbrl.pretrain` for tests that start processes: logs every update and stops where it is told to.

python tests/every_update.py plain|fixed <updates until killed, 0 never> key=value ...
"""

import dataclasses
import os
import signal
import sys

from mbrl import pretrain
from mbrl.command import command
from mbrl.settings import Settings, load
from world_model.learner import WorldModelLearner


def without_dropout(words: list[str]) -> Settings:
    settings = load(words)
    world = settings.world_model
    tokenizer = dataclasses.replace(world.tokenizer, cross_attention_dropout=0.0)
    transformer = dataclasses.replace(world.transformer, attention_dropout=0.0)
    return dataclasses.replace(
        settings, world_model=dataclasses.replace(world, tokenizer=tokenizer, transformer=transformer)
    )


def main() -> None:
    kind, stop = sys.argv.pop(1), int(sys.argv.pop(1))
    update, done = WorldModelLearner.update, 0

    def killed(*arguments):
        nonlocal done
        done += 1
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*arguments)

    pretrain.LOG_UPDATES = 1
    WorldModelLearner.update = killed
    if kind == "fixed":
        pretrain.load = without_dropout
    command(pretrain.main)


if __name__ == "__main__":
    main()

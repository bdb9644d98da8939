"""`mbrl.pretrain.pretrain` for a test to start with torchrun: it logs every update and has no dropout."""

from together import Steady

from mbrl.experiment.command import command
from mbrl.pretrain import pretrain

if __name__ == "__main__":
    pretrain.LOG_UPDATES, pretrain.WorldModelLearner = 1, Steady  # type: ignore[misc]
    command(pretrain.main)

"""Functions run by two processes at once, and pre-training that can be watched and killed."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

from mbrl.pretrain import pretrain
from world_model import IVideoGPT
from world_model.ivideogpt.learner import WorldModelLearner

PROCESSES = 2


def together(function: Callable[..., None], *arguments: Any) -> None:
    """`function(rank, *arguments)` in two processes. Raises what torch raises when one of them fails or is killed."""
    multiprocessing.set_forkserver_preload(["mbrl.pretrain.pretrain"])  # imported once: that takes longer than a test
    start_processes(function, arguments, nprocs=PROCESSES, start_method="forkserver")


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("localhost", 0))
        return int(chosen.getsockname()[1])


def pretrain_together(rank: int, port: int, overrides: list[str], stop: int) -> None:
    """One process of a pre-training, with what torchrun tells it; killed in the update `stop` if that is not 0."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()} | {"TORCHELASTIC_RUN_ID": "test"}
    update, done = WorldModelLearner.update, 0

    def killed(*given: Any) -> dict[str, torch.Tensor]:
        nonlocal done
        done += 1
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        return update(*given)

    WorldModelLearner.update = killed  # type: ignore[method-assign]
    pretrain.main(overrides)


def without_dropout(model: IVideoGPT) -> IVideoGPT:
    """The model with none of what processes do not share."""
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # type: ignore[assignment]
    return model


class Steady(WorldModelLearner):
    """A learner without dropout."""

    def __init__(self, model: IVideoGPT, *given: Any) -> None:
        super().__init__(without_dropout(model), *given)

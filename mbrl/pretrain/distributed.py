"""Many processes, many machines: `torchrun --nproc-per-node 4 -m mbrl.pretrain key=value ...`.

torchrun starts the processes and tells each its place; here they find each other and a device. What they then do
together is in `world_model/ivideogpt/parallel.py`. `data` and `out` must lie where every machine sees them.
"""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from mbrl.experiment.settings import UserError, pick_device

PATIENCE = datetime.timedelta(hours=1)  # for the first process, which validates while the others wait


@contextmanager
def joined_processes(device: str) -> Iterator[None]:
    """Be one of the processes that torchrun started while the body runs; started otherwise, be alone.

    Raises UserError if there are more processes on this machine than GPUs.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    cuda = pick_device(device).type == "cuda"
    if cuda:
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(f"torchrun started more processes here than the {gpus} GPUs: set --nproc-per-node {gpus}")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error: the others may no longer answer

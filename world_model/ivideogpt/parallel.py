"""One model learned by many processes: each takes its slice of every batch, and gradients are means over all of them.

Every process draws the same random numbers for the whole batch and slices them as well, so what is learned does not
depend on how many there are, but for the last bits and for dropout. In a process that is alone, without a process group
of torch.distributed, nothing here does anything. Collectives: every rank must call them.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


def processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of the processes this is; the first, 0, writes what is written."""
    return dist.get_rank() if dist.is_initialized() else 0


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def local_slice(count: int) -> slice:
    """This process's part of a batch of `count`."""
    share = count // processes()
    return slice(rank() * share, (rank() + 1) * share)


# -- what all of them know together --------------------------------------------------------------------------------


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over processes."""
    if dist.is_initialized():
        x = x.clone()
        dist.all_reduce(x)
    return x


def mean(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Scalars as means over the parts of a batch and over processes, in one exchange."""
    metrics = {name: torch.stack([part[name].float() for part in parts]).mean() for name in parts[0]}
    values = all_reduce_sum(torch.stack(list(metrics.values()))) / processes()
    return dict(zip(metrics, values, strict=True))


def all_gather(x: Tensor) -> Tensor:
    """The parts (B, ...) of all processes, one behind the other as in the whole batch."""
    if not dist.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(processes())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def everyone(x: T) -> list[T]:
    """What each process has, in their order."""
    if not dist.is_initialized():
        return [x]
    found: list[Any] = [None] * processes()
    dist.all_gather_object(found, x)
    return found


# -- modules -------------------------------------------------------------------------------------------------------


def wrap(module: nn.Module, shards: nn.ModuleList | None = None, some_unused: bool = False) -> nn.Module:
    """Have the gradients of `module`, whose forward gives the loss, become means over processes.

    Args:
        shards: cut the module up, so that each process keeps its share of weights, gradients and optimizer state;
            weights of one of `shards` are put together at a time.
        some_unused: not every weight has a part in every loss.
    """
    if not dist.is_initialized():
        return module
    if shards is None:
        return DistributedDataParallel(module, find_unused_parameters=some_unused, forward_sync_buffers=False)
    mesh = init_device_mesh(next(module.parameters()).device.type, (processes(),))
    for shard in shards:
        fully_shard(shard, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def synchronised(module: nn.Module, now: bool) -> AbstractContextManager[Any]:
    """Around a forward and backward pass; gradients are exchanged in the last pass of an update alone."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
    elif isinstance(module, DistributedDataParallel) and not now:
        return module.no_sync()
    return nullcontext()


def is_sharded(module: nn.Module) -> bool:
    """Whether processes keep shares of its weights."""
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def full_state(state: Any) -> Any:
    """A nested state with every tensor that is cut up put together."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: full_state(value) for key, value in state.items()}
    return [full_state(value) for value in state] if isinstance(state, list) else state


def shard_like(x: Tensor, target: Tensor) -> Tensor:
    """A whole tensor in the way that `target` is cut up, if it is and their shapes agree."""
    if not isinstance(target, DTensor) or x.shape != target.shape:
        return x
    return distribute_tensor(x.to(target.device), target.device_mesh, target.placements)


def load_weights(module: nn.Module, state: dict[str, Tensor]) -> None:
    """`module.load_state_dict` of a whole state."""
    own = module.state_dict()
    module.load_state_dict({name: shard_like(value, own.get(name, value)) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict` of a whole state."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments = {
        index: {name: shard_like(value, weights[index]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})

"""Measuring: seconds of a call, what the device can do at most, and what a call cannot do without.

A *floor* is the time that the arithmetic of a call takes at the rate of a large matrix product on the same device, or
its unavoidable memory traffic at the rate of a large copy, whichever is longer. Nothing reaches it; it tells whether
there is something left to gain.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from mbrl.experiment.provenance import provenance
from world_model import IVideoGPT

PROBE_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the matrices of the probe
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}  # far more than a cache holds
PROBES = 5
# A parameter in float32: read forward and backward, its gradient written; then Adam reads gradient, weight and two
# moments and writes the last three.
ADAM_BYTES = 10 * 4


class Spread(NamedTuple):
    """Seconds of one call, over the repetitions."""

    median: float
    low: float
    high: float
    repeats: int


def spread(seconds: Sequence[float]) -> Spread:
    return Spread(statistics.median(seconds), min(seconds), max(seconds), len(seconds))


def wait(device: torch.device | str) -> None:
    """Until the device has done all it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: torch.device | str, calls: int = 1) -> float:
    """Seconds of one of `calls` calls in a row."""
    wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    wait(device)
    return (time.perf_counter() - start) / calls


def repeated(call: Callable[[], object], device: torch.device | str, repeats: int, at_least_s: float) -> Spread:
    """Once to warm up, then `repeats` times, and on until `at_least_s` seconds were measured."""
    call()
    seconds: list[float] = []
    while len(seconds) < repeats or sum(seconds) < at_least_s:
        seconds.append(seconds_of(call, device))
    return spread(seconds)


def machine(device: torch.device) -> dict[str, Any]:
    """Commit, versions and machine, and what decides the speed of the latter."""
    capabilities = torch.cpu.get_capabilities()
    flags = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return provenance() | {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "flags": flags,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "load_average_before": load,  # above 0 by much: somebody else was computing, and the figures are worth less
    }


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# -- the floor --------------------------------------------------------------------------------------------------------


class Limits(NamedTuple):
    """What the device was measured to do."""

    flops: dict[str, float]  # operations a second in a large matrix product, by precision
    bytes: float  # bytes a second, read and written, in a large copy


def probe(device: torch.device) -> Limits:
    """A large matrix product in both precisions and a large copy; the best of a few."""
    size = PROBE_SIZE.get(device.type, PROBE_SIZE["cpu"])
    flops = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        flops[precision] = 2 * size**3 / _best(lambda a=a, b=b: a @ b, device)  # type: ignore[misc]
    source = torch.ones(COPY_BYTES.get(device.type, COPY_BYTES["cpu"]), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Limits(flops, 2 * source.numel() / _best(lambda: target.copy_(source), device))


def _best(call: Callable[[], object], device: torch.device) -> float:
    call()
    return min(seconds_of(call, device) for _ in range(PROBES))


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attentions in one call."""
    aten = torch.ops.aten  # the counter of torch 2.13 does not know the attention that a CPU takes
    formulas = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        call()
    return counter.get_total_flops()


def update_bytes(parameters: Sequence[Tensor]) -> int:
    """Memory traffic that no update by Adam of these parameters can do without; activations are not counted."""
    return ADAM_BYTES * sum(parameter.numel() for parameter in parameters)


def dream_bytes(model: IVideoGPT, batch: int, horizon: int, precision: str) -> int:
    """Memory traffic that no rollout can do without: all weights once a pass, and the cache that the pass looks at."""
    layout, config = model.layout, model.transformer.config
    size = 2 if precision == "bf16" else 4
    blocks = sum(parameter.numel() for parameter in model.transformer.blocks.parameters())
    head = layout.dynamics_codes * config.hidden_size
    passes = horizon * layout.dynamics_tokens
    read = sum(layout.prefix + layout.stride * t + i for t in range(horizon) for i in range(layout.dynamics_tokens))
    cached = 2 * config.num_hidden_layers * config.hidden_size * batch * read  # keys and values
    decoder = sum(parameter.numel() for parameter in model.tokenizer.cond_decoder.parameters())
    return size * (passes * (blocks + head) + cached + horizon * decoder)


def floor(flops: float, traffic: float, limits: Limits, precision: str) -> float:
    """Seconds below which this device cannot come."""
    return max(flops / limits.flops[precision], traffic / limits.bytes)

"""What every worker speaks: a request and an answer, each one line of JSON.

    {"do": "make", "workload": "dream", "spec": {...}}  ->  {"versions": {...}, "threads": n}
    {"do": "outputs", "file": "a.safetensors"}          ->  {}               what it computes, to be compared
    {"do": "time", "calls": 3}                          ->  {"seconds": s}   of one call

Needs torch and safetensors only, because the peer's environment has nothing of ours.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.workers.lines import answer


class Workload(Protocol):
    def outputs(self) -> dict[str, Tensor]:
        """What is compared before anything is timed; computed from the state that `make` left."""
        ...

    def run(self) -> object:
        """What is timed."""
        ...


def serve(workloads: Mapping[str, Callable[[dict[str, Any]], Workload]]) -> None:
    """Answer requests until the driver closes the pipe (`lines.py`)."""
    workload: Workload | None = None
    device = "cpu"

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        nonlocal workload, device
        if request["do"] == "make":
            spec = request["spec"]
            device = spec["device"]
            if spec["threads"]:
                torch.set_num_threads(spec["threads"])
            torch.backends.cudnn.allow_tf32 = False  # fp32 is meant where it is said
            torch.manual_seed(0)
            workload = workloads[request["workload"]](spec)
            versions = {"python": sys.version.split()[0], "torch": torch.__version__}
            return {"versions": versions, "threads": torch.get_num_threads()}
        if workload is None:
            raise RuntimeError("nothing was made yet")
        if request["do"] == "outputs":
            outputs = {name: value.detach().cpu().contiguous() for name, value in workload.outputs().items()}
            save_file(outputs, request["file"])
            return {}
        if request["do"] == "time":
            wait(device)
            start = time.perf_counter()
            for _ in range(request["calls"]):
                workload.run()
            wait(device)
            return {"seconds": (time.perf_counter() - start) / request["calls"]}
        raise ValueError(f"unknown request {request['do']!r}")

    answer(handle)


def wait(device: str) -> None:
    """Until the device has done all it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()

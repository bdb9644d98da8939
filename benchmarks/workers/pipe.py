"""What every worker speaks: a request and an answer, each one line of JSON.

    {"do": "make", "workload": "dream", "spec": {...}}  ->  {"versions": {...}, "threads": n}
    {"do": "outputs", "file": "a.safetensors"}          ->  {}               what it computes, to be compared
    {"do": "time", "calls": 3}                          ->  {"seconds": s}   of one call

Needs torch and safetensors only, because the peer's environment has nothing of ours.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor


class Workload(Protocol):
    def outputs(self) -> dict[str, Tensor]:
        """What is compared before anything is timed; computed from the state that `make` left."""
        ...

    def run(self) -> object:
        """What is timed."""
        ...


def serve(workloads: Mapping[str, Callable[[dict[str, Any]], Workload]]) -> None:
    """Answer requests until the driver closes the pipe. An error ends the worker; its log has the reason."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed goes to the log, not between the answers
    workload: Workload | None = None
    device = "cpu"
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "make":
            spec = request["spec"]
            device = spec["device"]
            if spec["threads"]:
                torch.set_num_threads(spec["threads"])
            torch.backends.cudnn.allow_tf32 = False  # fp32 is meant where it is said
            torch.manual_seed(0)
            workload = workloads[request["workload"]](spec)
            answer = {"versions": {"python": sys.version.split()[0], "torch": torch.__version__}}
            answer["threads"] = torch.get_num_threads()
        elif workload is None:
            raise RuntimeError("nothing was made yet")
        elif request["do"] == "outputs":
            outputs = {name: value.detach().cpu().contiguous() for name, value in workload.outputs().items()}
            save_file(outputs, request["file"])
        elif request["do"] == "time":
            wait(device)
            start = time.perf_counter()
            for _ in range(request["calls"]):
                workload.run()
            wait(device)
            answer = {"seconds": (time.perf_counter() - start) / request["calls"]}
        else:
            raise ValueError(f"unknown request {request['do']!r}")
        print(json.dumps(answer), file=answers, flush=True)


def wait(device: str) -> None:
    """Until the device has done all it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()

"""Requests and answers, each one line of JSON, over standard input and output. Needs nothing but Python."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def answer(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer requests until the driver closes the pipe. An error ends the worker; its log has the reason."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed goes to the log, not between the answers
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), file=answers, flush=True)


def use_cores(count: int) -> int:
    """Confine this process to `count` of the cores that it may use (0: all); how many those are.

    XLA takes as many threads as it finds cores when it starts; there is no other way to tell it.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: count or None])
    return len(os.sched_getaffinity(0))

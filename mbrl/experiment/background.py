"""A second thread for work that the loop need not wait for, done in the order in which it was given.

On a CPU the small products of this size are hardly faster with two threads than with one, so two pieces of work side by
side, on half the threads each, get through more. Nothing that is computed depends on how fast either is: what a job
reads is handed to it, and `wait` comes before anything that reads what it writes.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch


class Background:
    """Halves torch's threads between the caller and the jobs; on a GPU or with one thread, jobs run at once.

    `close` gives the threads back.
    """

    def __init__(self, device: torch.device) -> None:
        self._threads = torch.get_num_threads()
        self._half = self._threads // 2
        self._jobs: deque[Future[None]] = deque()
        self._alone = False
        self._executor: ThreadPoolExecutor | None = None
        if device.type == "cpu" and self._half:  # more than one
            # torch counts threads for each thread that calls it.
            self._executor = ThreadPoolExecutor(1, "background", torch.set_num_threads, (self._half,))
            torch.set_num_threads(self._half)

    def start(self, job: Callable[[], None]) -> None:
        """Run `job`, in the background if there is a thread."""
        if self._executor is None or self._alone:
            job()
        else:
            self._jobs.append(self._executor.submit(job))

    def wait(self) -> None:
        """Until all jobs are done. Raises what one of them raised."""
        while self._jobs:
            self._jobs.popleft().result()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """`wait`; then all threads for the body, and for jobs that it starts, at once."""
        self.wait()
        self._alone = True
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            self._alone = False
            if self._executor is not None:
                torch.set_num_threads(self._half)

    def close(self) -> None:
        """Jobs that have not begun are dropped."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None
        torch.set_num_threads(self._threads)

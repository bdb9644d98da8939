"""Work beside the loop: in order, nothing lost, errors heard, threads shared and given back."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from mbrl.experiment.background import Background

CPU = torch.device("cpu")


@pytest.fixture
def background() -> Iterator[Background]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    made = Background(CPU)
    yield made
    made.close()
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)


def test_jobs_run_beside_the_caller_in_order(background: Background) -> None:
    may_go, done = threading.Event(), []
    background.start(lambda: done.append(may_go.wait(10)))
    background.start(lambda: done.append("second"))
    assert done == []
    may_go.set()
    background.wait()
    assert done == [True, "second"]


def test_threads_are_shared(background: Background) -> None:
    threads = []
    background.start(lambda: threads.append(torch.get_num_threads()))
    background.wait()
    assert [*threads, torch.get_num_threads()] == [2, 2]
    with background.alone():
        assert torch.get_num_threads() == 4
    assert torch.get_num_threads() == 2


def test_alone_waits_and_then_does_jobs_at_once(background: Background) -> None:
    done = []
    background.start(lambda: (time.sleep(0.05), done.append("before")))
    with background.alone():
        assert done == ["before"]
        background.start(lambda: done.append(threading.current_thread() is threading.main_thread()))
        assert done == ["before", True]


def test_errors_are_heard(background: Background) -> None:
    def fails() -> None:
        raise ValueError("what went wrong")

    background.start(fails)
    with pytest.raises(ValueError, match="what went wrong"):
        background.wait()
    background.wait()  # and not twice


def test_one_thread_is_not_shared() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone, done = Background(CPU), []
        alone.start(lambda: done.append(threading.current_thread() is threading.main_thread()))
        assert done == [True]
        alone.close()
    finally:
        torch.set_num_threads(before)

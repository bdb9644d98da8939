"""What every test shares: one compute thread, so that no number depends on the machine; a place for runs."""

import os
from pathlib import Path

# Before torch or mujoco is imported; the commands that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    """Sums are split by thread: equal bits on every machine need an equal number of threads."""
    torch.set_num_threads(1)


@pytest.fixture
def run_root(tmp_path: Path) -> Path:
    """A folder of its own for a test's runs, in place of the project's `runs/`."""
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The checkout: where `configs/`, `Makefile` and the packages lie, and where commands are started."""
    return Path(__file__).resolve().parent.parent

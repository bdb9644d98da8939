"""What every test shares: one compute thread, so that no number depends on the machine; a place for runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before torch or mujoco is imported; the commands that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where a test has two threads, one that waits leaves the core to the other tests: spinning took seven times the work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from tiny import Command, Shell, checkpoints, copy_of, tiny, train


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="all of test_fuzz.py, test_kills.py and test_flat.py")


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether tests that have a quick part run as a whole: minutes in place of seconds."""
    return bool(request.config.getoption("--whole"))


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


@pytest.fixture(scope="session")
def shell(project_root: Path) -> Shell:
    """`python -m mbrl.<verb> overrides`, in a process of its own."""

    def run(verb: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", f"mbrl.{verb}", *overrides]
        return subprocess.run(line, cwd=project_root, capture_output=True, text=True)

    return run


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The same without a new process, which would take seconds: exit code, output, and the error's lines."""
    from mbrl.experiment.command import command

    def run(main: Callable[[list[str]], None], *overrides: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mbrl", *overrides])
        capsys.readouterr()
        code = 0
        try:
            command(main)
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err[err.index("error: ") :].strip() if "error: " in err else ""

    return run


@pytest.fixture(scope="session")
def finished(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run (see `tiny.py`) that was started on the command line and ended well."""
    root = tmp_path_factory.mktemp("finished") / "runs"
    done = shell("train", *tiny(root, "video=true"))
    assert done.returncode == 0, done.stderr
    return root / "toy" / "reach" / "mbpo" / "1"


@pytest.fixture(scope="session")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run that was stopped at frame 110; its checkpoints are those of frames 40 and 80."""
    from mbrl.session import Session

    root, act = tmp_path_factory.mktemp("cut") / "runs", Session.act

    def until_110(self: Session, agent: Any) -> None:
        act(self, agent)
        if self.frame == 110:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "act", until_110)
        with pytest.raises(KeyboardInterrupt):
            train(root)
    folder = root / "toy" / "reach" / "mbpo" / "1"
    assert checkpoints(folder) == [40, 80]
    return folder


@pytest.fixture
def stopped(cut_off: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of that run, and the overrides that continue it."""
    return copy_of(cut_off, tmp_path / "runs")

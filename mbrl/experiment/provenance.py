"""What a result was made with: the code's commit, the versions of what it runs with, the machine."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import envs
import mbrl

SIMULATORS = tuple(dict.fromkeys(package for suite in envs.SUITES for package in suite.packages))
PACKAGES = ("torch", "numpy", "gymnasium", *SIMULATORS, "hydra-core")


def provenance(task: str | None = None) -> dict[str, Any]:
    """The code's commit, the versions it runs with, those of `task` among them, and the machine."""
    packages = dict.fromkeys((*PACKAGES, *(envs.packages_of(task) if task else ())))
    status = _git("status", "--porcelain", "--untracked-files=no")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "version": mbrl.__version__,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "gpu": gpu},
        "command": sys.argv[1:],
    }


def _git(*arguments: str) -> str | None:
    """Output of git in the project's folder; None where there is no git or, as in a wheel, no repository of it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # git would look for one further up
        return None
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

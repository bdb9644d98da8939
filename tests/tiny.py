"""Training runs as small as they get: every part of the real thing once, in about two seconds."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

# Episodes of 10 decisions, a checkpoint every second one; demonstrations, their cloning, dropout, dreams all at work.
TINY = (
    "task=toy/reach",
    "preset=smoke",
    "device=cpu",
    "threads=1",
    "video=false",
    "episode_frames=20",
    "image_size=32",
    "demonstrations=2",
    "num_train_frames=160",
    "num_seed_frames=40",
    "eval_every_frames=80",
    "checkpoint_every_frames=40",
    "log_every_frames=20",
    "batch_size=4",
    "drqv2.bc_batch_size=2",
    "imagined_buffer_frames=48",
    "initial_model_updates=1",
    "initial_rollouts=4",
    "rollout_every_frames=20",
    "rollout_batch=4",
    "rollout_horizon=3",
    "update_transformer_every_frames=20",
    "update_tokenizer_every_frames=40",
    "world_model.tokenizer.resolution=32",
    "world_model.tokenizer.block_out_channels=[8,8,8,16]",
)
Shell = Callable[..., subprocess.CompletedProcess[str]]  # the fixtures `shell` and `typed`
Command = Callable[..., tuple[int, str, str]]
WEIGHTS = ("agent.safetensors", "world_model.safetensors")


def tiny(run_root: Path, *overrides: str) -> list[str]:
    """The overrides of a tiny run; later ones win."""
    merged = dict(override.split("=", 1) for override in (*TINY, f"run_root={run_root}", *overrides))
    return [f"{key}={value}" for key, value in merged.items()]


def train(run_root: Path, *overrides: str) -> Path:
    """Train in this process; returns the run folder."""
    from mbrl.train import main  # here, because conftest.py sets the threads first

    main(tiny(run_root, *overrides))
    [lock] = run_root.glob("**/.lock")
    return lock.parent


def copy_of(folder: Path, run_root: Path) -> tuple[Path, list[str]]:
    """A copy of a run under another root, and the overrides that continue it."""
    copy = run_root / folder.relative_to(folder.parents[3])
    shutil.copytree(folder, copy)
    return copy, tiny(run_root)


def checkpoints(folder: Path) -> list[int]:
    """Frames of the checkpoints of a run, oldest first."""
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def weights(folder: Path) -> dict[str, np.ndarray]:
    """All weights of the newest checkpoint of a run."""
    newest = folder / "checkpoints" / f"{checkpoints(folder)[-1]:09d}"
    files = [newest / name for name in WEIGHTS if (newest / name).exists()]
    return {f"{file.stem}/{name}": value for file in files for name, value in load_file(file).items()}


def different(a: Path, b: Path) -> list[str]:
    """Names of the weights of which not every bit is the same in two runs."""
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert ours
    return [name for name, value in ours.items() if value.tobytes() != theirs[name].tobytes()]


def stand_in(folder: Path, program: str, versions: dict[str, str]) -> Path:
    """A python of a peer's environment that runs `program`, whatever it is asked for, and tells these versions."""
    (folder / "fake.py").write_text(program)
    python = folder / "python"
    told = json.dumps(versions)
    python.write_text(
        f"#!/bin/sh\nif [ \"$1\" = -c ]; then echo '{told}'; else exec {sys.executable} {folder}/fake.py; fi\n"
    )
    python.chmod(0o755)
    return python

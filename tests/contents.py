"""What two folders of a run, or of a pre-training, hold: every part of the last checkpoint, all logs and episodes."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.numpy import load_file

from mbrl.experiment.identity import FREE_KEYS

LOGS = ("metrics.jsonl", "train.csv", "eval.csv")
MAY_DIFFER = {"wall_time_s", "log_sizes", "out", *FREE_KEYS}  # of states and configs


def unequal(a: Path, b: Path) -> list[str]:
    """Names of what is not the same in both, to the last bit; times of the clock aside."""
    ours, theirs = dict(parts(a)), dict(parts(b))
    assert len(ours) > 5
    return sorted({*ours} ^ {*theirs}) + [
        name for name in ours if name in theirs and not same(ours[name], theirs[name])
    ]


def parts(folder: Path) -> Iterator[tuple[str, Any]]:
    newest = max(folder.glob("checkpoints/[0-9]*"))
    yield "checkpoint", newest.name
    for path in newest.iterdir():
        if path.name != "manifest.json":
            yield path.name, read(path)
    for name in LOGS:
        if (folder / name).exists():
            yield name, read(folder / name)
    yield "config", timeless(yaml.safe_load((folder / "config.yaml").read_text()))
    for path in sorted(
        [*folder.glob("replay/*.npz"), *folder.glob("*.safetensors"), *folder.rglob("*model/**/*.safetensors")]
    ):
        yield str(path.relative_to(folder)), read(path)


def read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".npz":
        return dict(np.load(path))
    if path.suffix == ".csv":
        return [timeless(row) for row in csv.DictReader(path.read_text().splitlines())]
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return timeless(json.loads(path.read_text()))


def timeless(value: Any) -> Any:
    """Without seconds, and without the keys that change nothing."""
    if not isinstance(value, dict):
        return value
    left_out = {key for key in value if key.startswith("time/") or key in MAY_DIFFER}
    return {key: timeless(one) for key, one in value.items() if key not in left_out}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and same(a.numpy(), b.numpy())
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return type(a) is type(b) and a == b

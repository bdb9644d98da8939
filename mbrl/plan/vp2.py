"""Files of the VP2 benchmark, for who has them: goals of RoboDesk's tasks, and classifiers of success.

    goals.hdf5   data/demo_<i>/ states float (T, 73 or more), obs/camera_image uint8 (T, H, W, 3), perhaps start_index
    <task>.pt    the weights of a `SuccessClassifier`, as torch.save writes them

An instance begins at the state of `start_index`, or at the first, and its goal is the last image. Layouts after
s-tian/vp2: vp2/envs/base.py and vp2/util/conv_predictor.py (Tian et al., ICLR 2023, arXiv 2304.13723).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from envs.robodesk import STATE_SIZE
from world_model.data.source import needs
from world_model.files import read_torch, reading, regular

PREFIX = "vp2:"  # of such a file where another kind could stand


class Instance(NamedTuple):
    """Where an episode begins, and what it is to look like in the end."""

    state: np.ndarray  # float64 (73 or more,)
    goal: np.ndarray  # uint8 (3, H, W)


class SuccessClassifier(nn.Module):
    """Frames (B, 3, 64, 64) in [0, 1] -> logits of success (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        residuals = [part for _ in range(3) for part in (_Residual(), nn.ReLU())]
        self.net = nn.Sequential(
            _convolution(3, 32),
            *residuals,
            _convolution(32, 3),
            nn.Flatten(),  # (B, 12288)
            nn.Linear(3 * 64 * 64, 1024),
            nn.ReLU(),
            nn.Linear(1024, 1),
        )

    def forward(self, frames: Tensor) -> Tensor:
        return self.net(frames)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cnv = nn.Sequential(_convolution(32, 32), nn.ReLU(), _convolution(32, 32))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.cnv(maps)


def _convolution(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel_size=3, padding=1)


def is_vp2(name: str) -> bool:
    """Whether a setting names a file of VP2, `vp2:<file>`."""
    return name.startswith(PREFIX)


def path_of(name: str) -> Path:
    """The file of such a setting."""
    return Path(name.removeprefix(PREFIX))


def load_classifier(path: Path, device: torch.device | str = "cpu") -> SuccessClassifier:
    """Raises UserError: the file holds something else; nothing in it is run."""
    model = SuccessClassifier()
    with reading(path, advice="it must be a success classifier of VP2, cost_classifiers/<task>.pt"):
        model.load_state_dict(read_torch(path, device))
    return model.to(device).eval().requires_grad_(False)


@lru_cache(maxsize=1)
def load_instances(path: Path) -> tuple[Instance, ...]:
    """In the order of the file. Raises UserError: it is no such file, or one of another environment."""
    with reading(path, advice="it must be the goals.hdf5 of one of VP2's tasks of RoboDesk"):
        with needs("h5py"):
            import h5py

        with h5py.File(regular(path)) as file:
            data = file["data"]
            names = sorted(data, key=lambda name: int(name.removeprefix("demo_")))
            if not names:
                raise ValueError("it has no instances")
            return tuple(_instance(data[name]) for name in names)


def _instance(demo: Any) -> Instance:
    start = int(demo["start_index"][()]) if "start_index" in demo else 0
    state, goal = np.asarray(demo["states"][start], np.float64), np.asarray(demo["obs/camera_image"][-1])
    if state.ndim != 1 or len(state) < STATE_SIZE:
        raise ValueError(f"a state of {state.shape}, not of {STATE_SIZE} numbers or more")
    if goal.dtype != np.uint8 or goal.ndim != 3 or goal.shape[-1] != 3:
        raise ValueError(f"an image of {goal.dtype} {goal.shape}, not of uint8 (H, W, 3)")
    return Instance(state, np.ascontiguousarray(goal.transpose(2, 0, 1)))

"""Goal frames: where the scripted expert ends up from the same start, or an image in a file; `offset.py` has others."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

import envs
from mbrl.collector import expert_action, record
from mbrl.experiment.settings import UserError
from mbrl.plan.offset import parse_offset
from world_model.data.source import decode_image
from world_model.files import reading, regular

EXPERT, NONE = "expert", "none"


def check_goal(goal: str, task: str, resolution: int) -> None:
    """Raises UserError: no such goal can be had."""
    if goal == EXPERT and not envs.has_expert(task):
        raise UserError(f"goal=expert: {task} has no scripted expert; give an image, goal=<file>.png")
    if goal not in (EXPERT, NONE) and parse_offset(goal) is None:
        _read(goal, resolution)


def goal_frame(goal: str, env: envs.PixelEnv, seed: int) -> np.ndarray | None:
    """The goal of the episode that begins with `reset(seed=seed)`: uint8 (3, H, W), or None. The episode ends."""
    if goal == NONE:
        return None
    if goal != EXPERT:
        return _read(goal, env.observation_space.shape[-1])
    episode = record(env, lambda obs: expert_action(env), seed)
    if episode.successes is not None and not episode.successes.any():
        warnings.warn(f"the expert did not succeed from seed {seed}; its last frame is the goal", stacklevel=2)
    return episode.frames[-1]


def _read(file: str, resolution: int) -> np.ndarray:
    if not Path(file).is_file():
        raise UserError(f"goal={file}: no such file; it is expert, offset:<decisions>, none or an image")
    with reading(Path(file), advice=f"goal={file} must be an image"):
        frame = decode_image(regular(file).read_bytes()).transpose(2, 0, 1)
    if frame.shape[1:] != (resolution, resolution):
        height, width = frame.shape[1:]
        raise UserError(f"goal={file} is {width}x{height} pixels, the model sees {resolution}x{resolution}")
    return frame

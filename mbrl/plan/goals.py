"""Goal frames: where the scripted expert ends up from the same start, an image in a file, or those of VP2.

`offset.py` has others.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

import envs
from mbrl.collector import expert_action, record
from mbrl.experiment.settings import UserError
from mbrl.plan.offset import parse_offset
from mbrl.plan.vp2 import is_vp2, load_instances, path_of
from world_model.data.source import decode_image
from world_model.files import reading, regular

EXPERT, NONE = "expert", "none"


def starts_for(goal: str, task: str) -> dict[int, np.ndarray] | None:
    """The `starts` to make environments with; `goal_frame` fills them. Raises UserError: a goal of another suite."""
    if not is_vp2(goal):
        return None
    if "starts" not in envs.suite_of(task).options:
        raise UserError(f"goal={goal} is for tasks of robodesk, not for {task}")
    return {}


def check_goal(goal: str, task: str, resolution: int) -> None:
    """Raises UserError: no such goal can be had."""
    if goal == EXPERT and not envs.has_expert(task):
        raise UserError(f"goal=expert: {task} has no scripted expert; give an image, goal=<file>.png")
    if is_vp2(goal):
        _check_size(goal, load_instances(path_of(goal))[0].goal, resolution)
    elif goal not in (EXPERT, NONE) and parse_offset(goal) is None:
        _read(goal, resolution)


def goal_frame(goal: str, env: envs.PixelEnv, seed: int) -> np.ndarray | None:
    """The goal of the episode that begins with `reset(seed=seed)`: uint8 (3, H, W), or None. The episode ends.

    With `goal=vp2:<file>` seed 1 is the file's first instance, and that reset will begin at its state, in all
    environments that were made with the same `starts`.
    """
    if goal == NONE:
        return None
    if is_vp2(goal):
        instances = load_instances(path_of(goal))
        instance = instances[(seed - 1) % len(instances)]
        starts = env.simulator.starts  # type: ignore[attr-defined]
        starts[env.reset(seed=seed)[1]["seed"]] = instance.state
        return instance.goal
    if goal != EXPERT:
        return _read(goal, env.observation_space.shape[-1])
    episode = record(env, lambda obs: expert_action(env), seed)
    if episode.successes is not None and not episode.successes.any():
        warnings.warn(f"the expert did not succeed from seed {seed}; its last frame is the goal", stacklevel=2)
    return episode.frames[-1]


def _read(file: str, resolution: int) -> np.ndarray:
    if not Path(file).is_file():
        raise UserError(f"goal={file}: no such file; it is expert, offset:<decisions>, vp2:<file>, none or an image")
    with reading(Path(file), advice=f"goal={file} must be an image"):
        frame = decode_image(regular(file).read_bytes()).transpose(2, 0, 1)
    _check_size(file, frame, resolution)
    return frame


def _check_size(goal: str, frame: np.ndarray, resolution: int) -> None:
    if frame.shape[1:] != (resolution, resolution):
        height, width = frame.shape[1:]
        raise UserError(f"goal={goal} is {width}x{height} pixels, the model sees {resolution}x{resolution}")

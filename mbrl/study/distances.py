"""Which distance to a goal frame tells how far away it is: of images, or of code vectors?

The scripted expert's episode up to its first success, whose frame is the goal. A distance that a planner can descend
has the rank of the decisions that are left to the goal.

Letters: T decisions to the goal, K frames that the model is given, m tokens a frame, D width of their code vectors.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import envs
from mbrl.collector import begin_of, expert_action, record
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import UserError
from mbrl.predict.models import load_predictor
from mbrl.rollout import to_float
from world_model import IVideoGPT
from world_model.api import Dreamable, TokenizedRollout
from world_model.metrics import correlation

NEAR = 16  # decisions that a plan looks ahead
AT_ONCE = 32  # frames to encode


@torch.no_grad()
def measure(folder: Path, tasks: Sequence[str], episodes: int, seed: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each task: rank correlations with the decisions to go, means over `episodes`.

    Raises:
        UserError, envs.UnknownTask: the model has no tokens, or a task no expert.
    """
    predictor = load_predictor(folder, None, "fp32", device)
    if not isinstance(predictor.world, IVideoGPT):
        raise UserError(f"start_from={folder}: this study needs a model with tokens")
    names = [envs.canonical(task) for task in tasks]
    if lacking := next((task for task in names if not envs.has_expert(task)), None):
        raise UserError(f"task_names: {lacking} has no scripted expert")
    rows = []
    for task in names:
        env = envs.make(task, image_size=predictor.resolution)
        found = []
        for number in range(episodes):
            episode = record(env, partial(_expert, env), stream_seed(seed, "distances", number))
            if episode.successes is not None and episode.successes.any():
                solved = begin_of(episode, int(episode.successes.argmax()) + 1)
                frames = to_float(torch.from_numpy(solved.frames[solved.prefix :]).to(device))
                found.append(_of_episode(predictor.world, predictor.context_length, frames))
        env.close()
        means = {key: float(np.nanmean([row[key] for row in found])) for key in found[0]} if found else {}
        rows.append({"task": task, "episodes": len(found)} | means)
    return rows


def _expert(env: envs.PixelEnv, _: NDArray[np.uint8]) -> NDArray[np.float32]:
    return expert_action(env)


def _of_episode(world: Dreamable, known: int, frames: Tensor) -> dict[str, float]:
    """Of frames (T + 1, 3, H, W), the last of which is the goal."""
    end, whole_images = len(frames) - 1, image_distances(frames)
    near = [(first, min(first + NEAR, end)) for first in range(0, max(end - NEAR, 0) + 1, NEAR // 2)]
    images = [descent(whole_images[first : last + 1]) for first, last in near]
    codes = [descent(code_distances(world, known, frames, first, last)) for first, last in near]
    return {
        "images, whole": descent(whole_images),
        "codes, whole": descent(code_distances(world, known, frames, 0, end)),
        f"images, {NEAR} ahead": float(np.nanmean(images)),
        f"codes, {NEAR} ahead": float(np.nanmean(codes)),
    }


def image_distances(frames: Tensor) -> NDArray[np.float64]:
    """Squared errors of all frames to the last, (T + 1,)."""
    return (frames - frames[-1]).square().sum((1, 2, 3)).double().cpu().numpy()


def code_distances(world: Dreamable, known: int, frames: Tensor, first: int, last: int) -> NDArray[np.float64]:
    """Squared distances of code vectors of frames `first` to `last` to those of the goal, the last frame of all.

    All are encoded as a next frame of frame `first`.
    """
    given = torch.stack([frames[max(first - back, 0)] for back in reversed(range(known))])
    ahead = torch.cat([frames[first : last + 1], frames[-1:]])
    parts = []
    for part in ahead.split(AT_ONCE):
        start = world.start(given.expand(len(part), -1, -1, -1, -1), horizon=1, temperature=0.0)
        assert isinstance(start, TokenizedRollout)
        parts.append(start.codes(start.encode(part)))  # (n, m, D)
    codes = torch.cat(parts)
    return (codes[:-1] - codes[-1]).square().sum((1, 2)).double().cpu().numpy()


def descent(distances: NDArray[np.float64]) -> float:
    """Spearman's correlation of distances with the decisions to go; nan where either does not change."""
    to_go = np.arange(len(distances), 0, -1)
    return correlation(torch.from_numpy(ranks(distances)), torch.from_numpy(ranks(to_go)))


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """From 1 on; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]

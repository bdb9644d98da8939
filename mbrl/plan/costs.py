"""From `cost=0.5*image+10*success` to a measure of plans; what the model cannot answer is refused in one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mbrl.experiment.settings import UserError, close
from mbrl.plan import vp2
from mbrl.plan.scores import Measure, classifier, codes, image, rewards, success, weighted
from world_model.files import read_program, reading

NAMES = ("reward", "image", "codes", "success", "classifier")
WITH_GOAL = ("image", "codes")
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
TERM = re.compile(r"(?:(?P<weight>\d+\.?\d*(?:e-?\d+)?)\*)?(?P<name>\w+)")


class Cost(NamedTuple):
    """The terms of a cost, as typed."""

    weights: dict[str, float]
    discount: float
    frames: int | None
    judge: Callable[[Tensor], Tensor] | None

    @property
    def needs_goal(self) -> bool:
        return not self.weights.keys().isdisjoint(WITH_GOAL)

    def measure(self, goal: Tensor | None) -> Measure:
        """For a goal frame (3, H, W) in [0, 1]; None for a cost without one."""
        parts: list[tuple[float, Measure]] = []
        for name, weight in self.weights.items():
            if name == "reward":
                part = rewards(self.discount)
            elif name == "success":
                part = success(self.frames)
            elif name == "classifier":
                assert self.judge is not None
                part = classifier(self.judge, self.frames)
            else:
                assert goal is not None, f"cost={name} needs a goal frame"
                part = (image if name == "image" else codes)(goal, self.frames)
            parts.append((weight, part))
        return weighted(parts)


def parse_cost(text: str) -> dict[str, float]:
    """Raises UserError: a term that cannot be read, is unknown, stands there twice or has no usable weight."""
    weights: dict[str, float] = {}
    for term in text.replace(" ", "").split("+"):
        match = TERM.fullmatch(term)
        name = match["name"] if match else term
        if match is None or name not in NAMES:
            raise UserError(f"cost={text}: {term!r} is no cost{close(name, NAMES)} (known: {', '.join(NAMES)})")
        if name in weights:
            raise UserError(f"cost={text}: {name} stands there twice")
        weights[name] = float(match["weight"] or 1.0)
        if not LEAST_WEIGHT <= weights[name] <= MOST_WEIGHT:
            raise UserError(f"cost={text}: a weight must be between {LEAST_WEIGHT:g} and {MOST_WEIGHT:g}")
    return weights


def load_classifier(path: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The module in a TorchScript file, or VP2's with the weights of `vp2:<file>`. Raises UserError: there is none."""
    if vp2.is_vp2(path):
        return vp2.load_classifier(vp2.path_of(path), device)
    with reading(Path(path), advice=f"classifier={path} must be a TorchScript file for cost=classifier"):
        return read_program(Path(path), device)

"""Whether two programs compute the same; asked before anything is timed."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbrl.experiment.settings import Settings

TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}  # see `difference`
SLACK = (
    1.5  # in bf16 we may be this much further from float32 than the other side is, where that is above the tolerance
)
LIMIT = 0.15  # but nobody may be further than this


class Mismatch(ValueError):
    """The two sides do not compute the same."""


def same_outputs(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """In float32: tokens equal, everything else within the tolerance; returns the largest difference.

    Raises:
        Mismatch: it is not so.
    """
    worst = 0.0
    for name, (a, b) in _pairs(ours, theirs).items():
        if a.dtype == torch.int64:
            if different := int((a != b).sum()):
                raise Mismatch(f"{different} of {a.numel()} {name} differ")
            continue
        differ = difference(a, b, "fp32")
        if not differ <= TOLERANCE["fp32"]:  # so written that NaN fails
            raise Mismatch(f"{name} differ by {differ:.2g}, more than {TOLERANCE['fp32']:g}")
        worst = max(worst, differ)
    return worst


def same_in_bf16(ours: dict[str, Tensor], theirs: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Ours are as near to the float32 numbers as theirs; returns the largest distance of ours.

    Two programs round differently, and a token that turns over for one of them moves a loss. So what counts is not how
    far they are from each other, but whether one is further off than the other.

    Raises:
        Mismatch: ours are further off than the tolerance, and than theirs with some slack; or one side by far.
    """
    worst = 0.0
    _pairs(ours, exact)
    for name, (a, b) in _pairs(ours, theirs).items():
        off, theirs_off = (difference(x, exact[name], "bf16") for x in (a, b))
        if not (theirs_off <= LIMIT and off <= min(LIMIT, max(TOLERANCE["bf16"], SLACK * theirs_off))):
            raise Mismatch(f"{name} are {off:.2g} off the float32 ones, theirs {theirs_off:.2g}")
        worst = max(worst, off)
    return worst


def _pairs(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """What goes with what. Raises Mismatch where names or shapes differ."""
    if ours.keys() != theirs.keys():
        raise Mismatch(f"ours gives {', '.join(sorted(ours))}, theirs {', '.join(sorted(theirs))}")
    for name, a in ours.items():
        if a.shape != theirs[name].shape:
            raise Mismatch(f"{name} are {tuple(a.shape)}, theirs {tuple(theirs[name].shape)}")
    return {name: (a, theirs[name]) for name, a in ours.items()}


def difference(a: Tensor, b: Tensor, precision: str) -> float:
    """In fp32 the largest error, as a share of the largest number (of 1 where that is less).

    In bf16 the root of the mean squared error, as a share of that of `b`: three digits turn a nearest code here and
    there into its neighbour, which moves single pixels far and says nothing.
    """
    a, b = a.double(), b.double()
    if precision == "bf16":
        return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())
    return float((a - b).abs().max()) / max(1.0, float(b.abs().max()))


class Episodes:
    """The episodes of the inputs; a sample is found in them by its action, which is unique."""

    def __init__(self, folder: Path) -> None:
        self.saved = []
        for file in sorted((folder / "episodes").glob("*.npz")):
            with np.load(file) as arrays:
                self.saved.append(dict(arrays))
        self.places = {
            action.tobytes(): (number, step)
            for number, arrays in enumerate(self.saved)
            for step, action in enumerate(arrays["action"][1:])
        }

    def place(self, action: Tensor) -> tuple[dict[str, np.ndarray], int]:
        """The episode that an action was taken in, and at which decision. Raises Mismatch."""
        key = action.numpy().tobytes()
        if key not in self.places:
            raise Mismatch("a sample has an action that no episode has")
        number, step = self.places[key]
        return self.saved[number], step


def same_transitions(folder: Path, settings: Settings, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Both sides drew true n-step transitions of the same episodes, which may be different ones.

    Raises:
        Mismatch: one of them did not.
    """
    episodes, n, discount = Episodes(folder), settings.nstep, settings.discount
    worst = 0.0
    for batch in (ours, theirs):
        for i, action in enumerate(batch["action"]):
            episode, t = episodes.place(action)
            steps = min(n, len(episode["action"]) - 1 - t)
            earned = sum(discount**k * float(episode["reward"][t + 1 + k, 0]) for k in range(steps))
            expected = {
                "obs": torch.from_numpy(episode["observation"][t]),
                "next_obs": torch.from_numpy(episode["observation"][t + steps]),
                "reward": torch.tensor([earned]),
                "discount": torch.tensor([discount**steps]),
            }
            worst = max(worst, same_outputs({k: batch[k][i] for k in expected}, expected))
    return worst


def same_segments(folder: Path, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Both sides drew true windows of the same episodes. Raises Mismatch.

    The last action and reward lead out of a window and are not looked at.
    """
    episodes, worst = Episodes(folder), 0.0
    for batch in (ours, theirs):
        for i, actions in enumerate(batch["actions"]):
            episode, t = episodes.place(actions[0])
            length = len(actions)
            expected = {
                "frames": torch.from_numpy(episode["observation"][t : t + length, -3:]),
                "actions": torch.from_numpy(episode["action"][t + 1 : t + length]),
                "rewards": torch.from_numpy(episode["reward"][t + 1 : t + length, 0]),
            }
            drawn = {"frames": batch["frames"][i], "actions": actions[:-1], "rewards": batch["rewards"][i, :-1]}
            worst = max(worst, same_outputs(drawn, expected))
    return worst

"""Which keys move what: the numbers of an action as a person sees them on the screen."""

from typing import NamedTuple

import numpy as np


class Lever(NamedTuple):
    """A pair of directions."""

    name: str
    less: str  # what the one does, and
    more: str  # the other
    vector: tuple[float, ...]  # (A,), the action of `more`
    stays: bool = False  # where it was put, until it is put elsewhere


# As Meta-world's camera `corner` sees the table: to its right is -x +y, away from it +x +y.
CORNER = (
    Lever("sideways", "left", "right", (-1, 1, 0, 0)),
    Lever("along", "nearer", "away", (1, 1, 0, 0)),
    Lever("height", "down", "up", (0, 0, 1, 0)),
    Lever("gripper", "open", "close", (0, 0, 0, 1), stays=True),
)
METAWORLD = (
    Lever("x", "-x", "+x", (1, 0, 0, 0)),
    Lever("y", "-y", "+y", (0, 1, 0, 0)),
    CORNER[2],
    CORNER[3],
)


def levers(suite: str, camera: str, action_dim: int) -> tuple[Lever, ...]:
    """Those of a task; of a suite that has none of its own, one for each number of the action."""
    if suite == "metaworld":
        return CORNER if camera == "corner" else METAWORLD
    names = ("x", "y") if suite == "toy" else tuple(f"a{i}" for i in range(action_dim))
    one_each = np.eye(action_dim).tolist()
    return tuple(
        Lever(name, f"-{name}", f"+{name}", tuple(vector)) for name, vector in zip(names, one_each, strict=True)
    )

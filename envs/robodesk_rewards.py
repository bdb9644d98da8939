"""Rewards and successes of RoboDesk's tasks, after robodesk 1.0.0 (see `robodesk` for what is mended)."""

from collections.abc import Callable
from typing import Any

import numpy as np

BLOCKS = ("flat_block", "upright_block", "ball")
_SHARES = {"flat_block": 0.33, "upright_block": 0.33, "ball": 0.34}  # of the reward for leaving them where they are
LIFTED = {"flat_block": 0.78, "upright_block": 0.86, "ball": 0.81}  # metres above the floor
STACKED = np.array([0.0, 0.0, 0.0377804])  # from the flat block to the upright one on it
_STILL = 0.01  # nearer than that to its start a block has not moved, metres


class Scene:
    """Where everything is, for rewards and experts; in metres.

    Args:
        data: of the simulation that is looked at.
        places: of the blocks at the start of the episode.
        strict: whether a block that is pushed off the table must leave the others alone.
    """

    def __init__(self, data: Any, places: dict[str, np.ndarray], strict: bool) -> None:
        self.data, self.places, self.strict = data, places, strict

    @property
    def hand(self) -> np.ndarray:
        """Between the fingers, (3,)."""
        return self.data.site("end_effector").xpos

    def joint(self, name: str) -> float:
        return float(self.data.joint(name).qpos[0])

    def body(self, name: str) -> np.ndarray:
        return self.data.body(name).xpos

    def near(self, place: np.ndarray) -> float:
        """1 where the hand is, 0 from one metre on."""
        return max(0.0, 1.0 - float(np.linalg.norm(self.hand - place)))

    def moved(self, block: str) -> float:
        """How far a block is from its start."""
        return float(np.linalg.norm(self.body(block) - self.places[block]))


# Of a scene and a button, joint or block: dense reward, and success.
Rule = Callable[[Scene, str], tuple[float, bool]]


def _push(scene: Scene, colour: str) -> tuple[float, bool]:
    pressed = scene.joint(f"{colour}_light") < -0.00453  # metres; it moves with the button
    return 0.25 * pressed + 0.75 * scene.near(scene.body(f"{colour}_button")), pressed


def _slide(scene: Scene, joint: str) -> tuple[float, bool]:
    opened = scene.joint(joint)
    edge = scene.data.site("slide_handle").xpos - np.array([0.15, 0.0, 0.0])
    still = sum(share for block, share in _SHARES.items() if scene.moved(block) < _STILL)
    return 0.9 * (0.75 * opened / 0.6 + 0.25 * scene.near(edge)) + 0.1 * still, opened > 0.55


def _drawer(scene: Scene, joint: str) -> tuple[float, bool]:
    opened = scene.joint(joint)
    return 0.75 * abs(opened) / 0.3 + 0.25 * scene.near(scene.data.geom("drawer_handle").xpos), opened < -0.2


def _off_table(scene: Scene, block: str) -> tuple[float, bool]:
    others = [other for other in BLOCKS if other != block]
    height = float(scene.body(block)[2])
    fallen = 1.0 - height / float(scene.places[block][2])
    stayed = sum(1.0 - scene.moved(other) / 5.0 for other in others)
    reward = 0.75 * min(1.0, max(0.0, 0.8 * fallen + 0.1 * stayed)) + 0.25 * scene.near(scene.body(block))
    alone = not scene.strict or all(scene.moved(other) < _STILL for other in others)
    return reward, height < 0.6 and alone


def _in_bin(scene: Scene, block: str) -> tuple[float, bool]:
    x, y, z = scene.body(block)
    inside = bool(0.28 < x < 0.52 and 0.38 < y < 0.62 and 0.0 < z < 0.4)
    return 0.5 * scene.near(scene.body(block)) + 0.5 * inside, inside


def _in_shelf(scene: Scene, block: str) -> tuple[float, bool]:
    place = scene.body(block)
    inside = bool(place[0] > 0.2 and place[1] > 1.0)
    nearness = 1.0 - float(np.linalg.norm(place[:2] - np.array([0.4, 1.1])))
    stayed = sum(1.0 - scene.moved(other) / 5.0 for other in BLOCKS if other != block)
    return 0.5 * (0.33 * scene.near(place) + 0.33 * nearness + 0.34 * inside) + 0.25 * stayed, inside


def _lift(scene: Scene, block: str) -> tuple[float, bool]:
    height = float(scene.body(block)[2])
    risen = min(1.0, max(0.0, 10.0 * (height - float(scene.places[block][2]))))
    return 0.85 * risen + 0.15 * scene.near(scene.body(block)), height > LIFTED[block]


def _stack(scene: Scene, block: str) -> tuple[float, bool]:
    missing = float(np.linalg.norm(STACKED - (scene.body(block) - scene.body("flat_block"))))
    return scene.near(scene.body(block)) - missing, missing < 0.04


RULES: dict[str, tuple[Rule, str]] = {
    **{f"push-{colour}": (_push, colour) for colour in ("red", "green", "blue")},
    "open-slide": (_slide, "slide_joint"),
    "open-drawer": (_drawer, "drawer_joint"),
    "stack": (_stack, "upright_block"),
    **{f"{block.replace('_', '-')}-off-table": (_off_table, block) for block in BLOCKS},
    **{f"{block.replace('_', '-')}-in-bin": (_in_bin, block) for block in BLOCKS},
    **{f"{block.replace('_', '-')}-in-shelf": (_in_shelf, block) for block in BLOCKS},
    **{f"lift-{block.replace('_', '-')}": (_lift, block) for block in BLOCKS},
}

"""Scripts that solve tasks of RoboDesk. They look at where things are now and at nothing before.

A task that is not in `EXPERTS` has none. The drawer is one of these: to pull it open by 20 cm the hand has to come
nearer to the robot than its elbow folds (the limit of joint 4), at the turn of the hand that the actions leave open.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from .robodesk_rewards import Scene

Expert = Callable[[Scene, int], np.ndarray]

# Metres.
SPEED = 0.0016  # of the hand in a frame, on each axis, under an action of 1
FINGERS = 0.05  # from between the fingers to their tips
TABLE, EDGE = 0.76, 0.575  # height of the table, and the y of its edge towards the robot
HELD = (0.03, 0.053)  # between the fingers when they hold the upright block, 4.6 cm wide
OPEN, CLOSED = 1.0, -1.0  # action of the fingers


def push_button(scene: Scene, action_repeat: int, colour: str) -> np.ndarray:
    """From above, with the tips of the fingers."""
    button = scene.body(f"{colour}_button")
    over = np.linalg.norm((button - _tips(scene))[:2]) < 0.02
    return _tips_to(scene, action_repeat, button + [0.0, 0.0, -0.03 if over else 0.08])


def open_slide(scene: Scene, action_repeat: int) -> np.ndarray:
    """The fingers go behind the handle, left of it, and push to the right."""
    handle = scene.data.site("slide_handle").xpos
    x, y, _ = _tips(scene) - handle
    if y > 0.02 and x < 0.0:
        way = [0.12, 0.07, 0.05]
    elif -0.16 < x < -0.04:
        way = [-0.06, 0.06, 0.03]
    else:
        way = [-0.08, -0.08, 0.03]
    return _tips_to(scene, action_repeat, handle + way)


def sweep_flat_block(scene: Scene, action_repeat: int) -> np.ndarray:
    """The fingers go down on its left and push it to the right, over the end of the table."""
    block, tips = scene.body("flat_block"), _tips(scene)
    start = np.array([block[0] - 0.125, block[1] + 0.01, TABLE + 0.012])
    x, y, z = tips - start
    pushing = x > 0.02  # it may have been lifted a little
    if z < (0.03 if pushing else 0.012) and tips[0] < block[0] - 0.048 and abs(y) < 0.035:
        action = _tips_to(scene, action_repeat, np.array([block[0] + 0.1, start[1], start[2]]))
        action[2] = -z * min(50.0, 1.0 / (SPEED * action_repeat))  # what counts is to stay down
        return action
    aside = max(abs(x), abs(y))
    if aside < 0.02 or (aside < 0.04 and x < 0.01 and z < 0.06):
        return _tips_to(scene, action_repeat, start - [0.0, 0.0, 0.02])
    if z < 0.05:
        return _tips_to(scene, action_repeat, tips + [-0.02, 0.0, 0.1])
    return _tips_to(scene, action_repeat, start + [0.0, 0.0, 0.08])


def carry_upright_block(scene: Scene, action_repeat: int) -> np.ndarray:
    """Grasp it, lift it over the flat one and let it fall in front of the table."""
    block, axes = scene.body("upright_block"), scene.data.site("end_effector").xmat.reshape(3, 3)
    ahead = axes[:, 2]  # where the fingers point
    grip = block + [0.0, 0.0, 0.03]
    off = scene.hand - grip
    along = float(off @ ahead)
    aside, apart = float(np.linalg.norm(off - along * ahead)), float(np.linalg.norm(off))
    width = scene.joint("panda0_finger_joint1") + scene.joint("panda0_finger_joint2")
    # Turned by this the fingers are side by side.
    turn = (np.arctan2(axes[2, 1], axes[2, 0]) + np.pi / 2) % np.pi - np.pi / 2
    if apart < 0.02 or (apart < 0.07 and HELD[0] < width < HELD[1]):
        if block[1] < EDGE - 0.075:
            goal, fingers = scene.hand + [0.0, 0.0, 0.02], OPEN
        elif width > HELD[1]:
            goal, fingers = grip, CLOSED
        else:
            up = float(np.clip(3.0 * (0.92 - block[2]), -0.1, 0.1))
            goal, fingers = scene.hand + [0.0, -0.1 if block[2] > 0.885 else -0.01, up], CLOSED
    elif aside < 0.012 and abs(turn) < 0.15 and along < 0.02:
        goal, fingers = grip, OPEN
    elif apart < 0.12 and along > -0.09 and aside > 0.012:
        goal, fingers = scene.hand - 0.1 * ahead + [0.0, 0.0, 0.02], OPEN
    else:
        goal, fingers = grip - 0.12 * ahead, OPEN
    wrist = float(np.clip(turn / max(0.0096 * action_repeat, 0.04), -1.0, 1.0))
    return np.array([*_pace(goal - scene.hand, action_repeat), wrist, fingers])


def _tips(scene: Scene) -> np.ndarray:
    """Of the closed fingers, (3,)."""
    return scene.hand + FINGERS * scene.data.site("end_effector").xmat.reshape(3, 3)[:, 2]


def _tips_to(scene: Scene, action_repeat: int, place: np.ndarray) -> np.ndarray:
    """The action that brings the tips of the closed fingers to a place, in a straight line."""
    return np.array([*_pace(place - _tips(scene), action_repeat), 0.0, CLOSED])


def _pace(way: np.ndarray, action_repeat: int) -> np.ndarray:
    """Full speed, or so much of it that a decision does not go too far."""
    wanted = way / max(0.01, SPEED * action_repeat)
    return wanted / max(1.0, float(np.abs(wanted).max()))


def _from_above(expert: Expert) -> Expert:
    """The same, after the way out from under the table, where some episodes begin."""

    def act(scene: Scene, action_repeat: int) -> np.ndarray:
        x, y, z = _tips(scene)
        if z > TABLE - 0.02:
            return expert(scene, action_repeat)
        out = [x, y, TABLE + 0.2] if y < EDGE - 0.08 else [x, EDGE - 0.2, z]
        return _tips_to(scene, action_repeat, np.array(out))

    return act


EXPERTS: dict[str, Expert] = {
    **{f"push-{colour}": _from_above(partial(push_button, colour=colour)) for colour in ("red", "green", "blue")},
    "open-slide": _from_above(open_slide),
    "upright-block-off-table": _from_above(carry_upright_block),
    "flat-block-off-table": _from_above(sweep_flat_block),
}

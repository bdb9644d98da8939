"""A pixel world for tests: a red dot moves to a green square on a grey plane. No simulator, no OpenGL.

`reach` draws the place of the square anew in every episode; in `centre` it is always in the middle.

The plane is [-1, 1] x [-1, 1]. In a frame the dot moves by `SPEED * action` and earns `1 - distance / 4`,
with the distance to the goal measured along the axes (L1), so between 0 and 1. Within `RADIUS` of the goal
on both axes is a success. The optimum is known, see `optimal_action` and `best_return`, so a test can say
how good an agent is.
"""

import gymnasium
import numpy as np

from .errors import NoExpert
from .wrappers import FrameResult, PixelEnv

TASKS = ("reach", "centre")
SPEED = 0.1
RADIUS = 0.1

_START_RANGE = 0.8  # dot and goal start at most this far from the middle, so that both are wholly in the image
_BACKGROUND, _GOAL, _DOT = (90, 90, 90), (60, 200, 80), (220, 50, 40)


class Toy:
    """The dot as a `Simulator`."""

    action_dim = 2

    def __init__(
        self, task: str, *, image_size: int, camera: str | int = 0, render_quality: str = "fast"
    ) -> None:  # it has one camera and one quality
        self._size, self._centred = image_size, task == "centre"
        self._half = max(1, image_size // 16)  # half the width of dot and goal, in pixels
        self._scenery = np.empty((3, image_size, image_size), np.uint8)  # the plane with the goal on it
        self.dot = self.goal = np.zeros(2)

    def reset(self, seed: int) -> None:
        """Draws the positions of dot and goal from `seed`."""
        generator = np.random.default_rng(seed)
        self.dot, goal = generator.uniform(-_START_RANGE, _START_RANGE, (2, 2))
        self._place_goal(np.zeros(2) if self._centred else goal)

    def _place_goal(self, goal: np.ndarray) -> None:
        self.goal = goal
        self._scenery[:] = np.array(_BACKGROUND, np.uint8)[:, None, None]
        self._draw(self._scenery, self.goal, _GOAL)

    def advance(self, action: np.ndarray) -> FrameResult:
        """Moves the dot by `SPEED * action`, (x, y), within the plane."""
        self.dot = np.minimum(np.maximum(self.dot + SPEED * action.astype(np.float64), -1.0), 1.0)
        distance = np.abs(self.dot - self.goal)
        return FrameResult(1.0 - float(distance.sum()) / 4.0, bool(distance.max() <= RADIUS), False)

    def render(self) -> np.ndarray:
        """Draws the plane, x to the right and y upward: uint8 (3, H, W)."""
        image = self._scenery.copy()
        self._draw(image, self.dot, _DOT)
        return image

    def snapshot(self) -> tuple[np.ndarray, np.ndarray]:
        """The positions of dot and goal, two float64 (2,)."""
        return self.dot, self.goal

    def restore(self, snapshot: tuple[np.ndarray, np.ndarray]) -> None:
        """Goes back to these positions."""
        self.dot, goal = snapshot
        self._place_goal(goal)

    def matches(self, snapshot: tuple[np.ndarray, np.ndarray]) -> bool:
        """Whether the dot is within `RADIUS` of the snapshot's on both axes."""
        dot, _ = snapshot
        return bool(np.abs(self.dot - dot).max() <= RADIUS)

    def expert_action(self, action_repeat: int) -> np.ndarray:
        """The best action when it will be held for `action_repeat` frames: float32 (2,)."""
        return np.clip((self.goal - self.dot) / (SPEED * action_repeat), -1.0, 1.0).astype(np.float32)

    def close(self) -> None:
        """There is nothing to free."""

    def _draw(self, image: np.ndarray, position: np.ndarray, colour: tuple[int, int, int]) -> None:
        scale = (self._size - 1) / 2.0
        column, row = round((position[0] + 1.0) * scale), round((1.0 - position[1]) * scale)
        rows = slice(max(row - self._half, 0), row + self._half + 1)
        columns = slice(max(column - self._half, 0), column + self._half + 1)
        image[:, rows, columns] = np.array(colour, np.uint8)[:, None, None]


def _toy_of(env: gymnasium.Env) -> tuple[PixelEnv, Toy]:
    base = env.unwrapped
    if not isinstance(base, PixelEnv) or not isinstance(base.simulator, Toy):
        raise NoExpert("the optimum is known for toy tasks only")
    return base, base.simulator


def optimal_action(env: gymnasium.Env) -> np.ndarray:
    """The best action in the present state of a toy environment: float32 (2,) in [-1, 1].

    Reward and motion of the axes are independent, and nearer is never worse. So an axis goes at full speed,
    or at the pace that arrives with the last frame of the decision. (It would pay to arrive earlier and
    overshoot only in the last decision of an episode, at 4 or more frames a decision, if the goal were not
    reached by then.)
    """
    base, simulator = _toy_of(env)
    return simulator.expert_action(base.action_repeat)


def best_return(env: gymnasium.Env) -> float:
    """The return of `optimal_action` from the present state of a toy environment to the end of its episode.

    It is computed on a copy of the positions: the environment does not move. The success bonus is included.
    """
    base, simulator = _toy_of(env)
    ghost = Toy("reach", image_size=1)
    ghost.dot, ghost.goal = simulator.dot, simulator.goal
    total = 0.0
    for _ in range(base.decisions_left):
        action = ghost.expert_action(base.action_repeat)
        frames = [ghost.advance(action) for _ in range(base.action_repeat)]
        total += sum(frame.reward for frame in frames)
        total += base.success_bonus * any(frame.success for frame in frames)
    return total

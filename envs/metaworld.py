"""Meta-world 3.1.1 from pixels: 50 manipulation tasks of a Sawyer arm, with the v2 rewards of the paper.

Three habits of the simulator are worked around here. Its `reset(seed=...)` ignores the seed, so its own
generator is seeded and told to draw a new goal at every reset. It carries state from one episode to the
next, so the simulator is put back as it was built first. Its corner cameras hang upside down, so their
rows are flipped.

As in the iVideoGPT experiments, one frame with a zero action follows a reset before the first image is
taken.

Reference: Yu et al., Meta-World, CoRL 2019; McLean et al., Meta-World+, 2025.
"""

import sys
from typing import Any

import numpy as np

from .rendering import Renderer, camera_id, choose_backend
from .snapshot import MujocoSnapshot, MujocoState
from .wrappers import FrameResult

PAPER_TASKS = (
    "button-press-topdown-wall",
    "coffee-push",
    "door-lock",
    "hammer",
    "handle-pull-side",
    "plate-slide",
)
# Written out, because to ask the package costs seconds and fixes MuJoCo's OpenGL backend at its import.
TASKS = tuple(
    """assembly basketball bin-picking box-close button-press button-press-topdown button-press-topdown-wall
    button-press-wall coffee-button coffee-pull coffee-push dial-turn disassemble door-close door-lock
    door-open door-unlock drawer-close drawer-open faucet-close faucet-open hammer hand-insert handle-press
    handle-press-side handle-pull handle-pull-side lever-pull peg-insert-side peg-unplug-side
    pick-out-of-hole pick-place pick-place-wall plate-slide plate-slide-back plate-slide-back-side
    plate-slide-side push push-back push-wall
    reach reach-wall shelf-place soccer stick-pull stick-push sweep sweep-into window-close
    window-open""".split()
)


CLOSE = 0.05  # metres: hand and objects that far from those of a goal state are where they should be
# (x, y, z) of the hand, the first object and the second in the state that the experts see; zeros where there is none.
_POSITIONS = ((0, 3), (4, 7), (11, 14))


class MetaWorld:
    """One Meta-world task as a `Simulator`.

    Args:
        task: one of `TASKS`.
        camera: a camera of the simulator, such as "corner".
        image_size: height and width of the images in pixels.
        render_quality: "fast" or "paper", see `rendering`.
    """

    action_dim = 4

    def __init__(self, task: str, *, camera: str | int, image_size: int, render_quality: str) -> None:
        choose_backend()
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self._task = task
        self._env = ALL_V3_ENVIRONMENTS[f"{task}-v3"](reward_function_version="v2")
        # The scripted experts need the goal in the state, and the bounds of the state were cached without it.
        self._env._partially_observable = False
        del self._env.sawyer_observation_space
        self._env._set_task_called = True
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._env.max_path_length = sys.maxsize  # the length of an episode is the wrapper's business
        self._simulation = MujocoState(self._env.model, self._env.data, self._env)
        self._state = np.empty(0)
        self._expert: Any = None

        number = camera_id(self._env.model, camera)
        # Column 1 of a camera's rotation is its up direction; the corner cameras' points to the floor.
        self._flip = self._env.data.cam_xmat[number].reshape(3, 3)[2, 1] < -0.1
        self._renderer = Renderer(self._env.model, number, image_size, render_quality)

    def reset(self, seed: int) -> None:
        """Starts an episode with object and goal drawn from `seed`."""
        import mujoco

        self._simulation.rebuild()
        mujoco.mj_resetData(self._env.model, self._env.data)
        mujoco.mj_forward(self._env.model, self._env.data)
        self._env.seed(seed)
        self._env.reset()
        self.advance(np.zeros(self.action_dim, np.float32))

    def advance(self, action: np.ndarray) -> FrameResult:
        """Simulates one frame: 5 steps of 2.5 ms."""
        self._state, reward, terminated, _, info = self._env.step(action)
        return FrameResult(float(reward), bool(info["success"]), terminated)

    def render(self) -> np.ndarray:
        """Draws the present state: uint8 (3, H, W), upright."""
        frame = self._renderer.render(self._env.data)
        return np.ascontiguousarray(frame[:, ::-1]) if self._flip else frame

    def snapshot(self) -> tuple[MujocoSnapshot, np.ndarray]:
        """The present state of the simulation, and what the expert sees of it."""
        return self._simulation.snapshot(), self._state

    def restore(self, snapshot: tuple[MujocoSnapshot, np.ndarray]) -> None:
        """Goes back to a snapshot of this task."""
        simulation, self._state = snapshot
        self._simulation.restore(simulation)

    def matches(self, snapshot: tuple[MujocoSnapshot, np.ndarray]) -> bool:
        """Whether hand and objects are within 5 cm each of the snapshot's.

        Meta-world has no goals that are states, so this tolerance is ours. An object is what the task calls so, also
        the handle of a door or a button.
        """
        _, state = snapshot
        return all(np.linalg.norm(self._state[a:b] - state[a:b]) <= CLOSE for a, b in _POSITIONS)

    def expert_action(self, action_repeat: int) -> np.ndarray:
        """What Meta-world's scripted expert does in the present state: float32 (4,) in [-1, 1].

        The experts steer from frame to frame; holding their action for a few frames does them no harm.
        """
        if self._expert is None:
            from metaworld.policies import ENV_POLICY_MAP

            policies: dict[str, Any] = ENV_POLICY_MAP
            self._expert = policies[f"{self._task}-v3"]()
        return np.clip(self._expert.get_action(self._state), -1.0, 1.0).astype(np.float32)

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._renderer.close()
        self._env.close()

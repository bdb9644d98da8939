"""The DeepMind Control suite from pixels, with the cameras of DrQ-v2.

The suite has no notion of success: `success` is always False and no bonus is paid. dm_control is imported
only when one of its tasks is made, and its images come from our own renderer.

Reference: Tassa et al., dm_control, 2020; cameras: Yarats et al., DrQ-v2, ICLR 2022.
"""

from typing import Any

import numpy as np

from .rendering import Renderer, camera_id, choose_backend
from .snapshot import MujocoSnapshot, MujocoState
from .wrappers import FrameResult

# Written out, because to ask the package costs a second and fixes its OpenGL backend at its import. All but lqr, whose
# actions have no bounds to scale to [-1, 1].
_DOMAINS = {
    "acrobot": "swingup swingup_sparse",
    "ball_in_cup": "catch",
    "cartpole": "balance balance_sparse swingup swingup_sparse two_poles three_poles",
    "cheetah": "run",
    "dog": "stand walk trot run fetch",
    "finger": "spin turn_easy turn_hard",
    "fish": "upright swim",
    "hopper": "stand hop",
    "humanoid": "stand walk run run_pure_state",
    "humanoid_CMU": "stand walk run",
    "manipulator": "bring_ball bring_peg insert_ball insert_peg",
    "pendulum": "swingup",
    "point_mass": "easy hard",
    "quadruped": "walk run escape fetch",
    "reacher": "easy hard",
    "stacker": "stack_2 stack_4",
    "swimmer": "swimmer6 swimmer15",
    "walker": "stand walk run",
}
# "walker-walk" -> ("walker", "walk"), "ball-in-cup-catch" -> ("ball_in_cup", "catch")
TASKS = {
    f"{domain}-{task}".lower().replace("_", "-"): (domain, task)
    for domain, tasks in _DOMAINS.items()
    for task in tasks.split()
}


def usual_camera(task: str) -> int:
    """The camera that DrQ-v2 shows a task with."""
    return 2 if TASKS[task][0] == "quadruped" else 0


ANGLE = 0.05  # radians: joints that far from those of a goal pose match it, in the protocol of stable-worldmodel


class DMControl:
    """One task of the suite as a `Simulator`.

    Args:
        task: a key of `TASKS`.
        camera: a camera of the domain by name or number.
        image_size: height and width of the images in pixels.
        render_quality: "fast" or "paper", see `rendering`.
    """

    def __init__(self, task: str, *, camera: str | int, image_size: int, render_quality: str) -> None:
        choose_backend()
        from dm_control import suite

        domain, name = TASKS[task]
        # Some domains draw their model from the seed. It is fixed here so that all randomness comes from
        # `reset`. No time limit: the length of an episode is the wrapper's business.
        self._env = suite.load(domain, name, task_kwargs={"random": 0, "time_limit": np.inf})
        self._physics = self._env.physics
        spec = self._env.action_spec()
        self._low, self._range = spec.minimum, spec.maximum - spec.minimum
        self.action_dim = spec.shape[0]
        model = self._physics.model.ptr
        self._simulation = MujocoState(model, self._physics.data.ptr, self._env, self._env.task)
        self._renderer = Renderer(model, camera_id(model, camera), image_size, render_quality)

    def reset(self, seed: int) -> None:
        """Starts an episode from `seed`."""
        self._simulation.rebuild()
        self._env.task._random = np.random.RandomState(seed)
        self._env.reset()
        self._renderer.upload_terrain()  # quadruped-escape grows a new one

    def advance(self, action: np.ndarray) -> FrameResult:
        """Simulates one control step of the suite."""
        timestep = self._env.step(self._low + (action.astype(np.float64) + 1.0) / 2.0 * self._range)
        return FrameResult(float(timestep.reward), False, bool(timestep.last()))

    def render(self) -> np.ndarray:
        """Draws the present state: uint8 (3, H, W)."""
        return self._renderer.render(self._physics.data.ptr)

    def snapshot(self) -> MujocoSnapshot:
        """The present state of the simulation."""
        return self._simulation.snapshot()

    def restore(self, snapshot: MujocoSnapshot) -> None:
        """Goes back to a snapshot of this task."""
        if self._simulation.restore(snapshot):
            self._renderer.upload_terrain()

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._renderer.close()
        self._env.close()


class Reacher(DMControl):
    """A two-link arm, whose poses can be goals.

    Reference: `qpos_match` of stable-worldmodel, arXiv 2605.21800, with which LeWM (2603.19312) is judged.
    """

    def matches(self, snapshot: MujocoSnapshot) -> bool:
        """Whether both joints are within 0.05 rad of the snapshot's, full turns aside; velocities do not count."""
        apart = self._simulation.positions() - self._simulation.positions(snapshot)  # (2,)
        return bool(np.abs((apart + np.pi) % (2 * np.pi) - np.pi).max() <= ANGLE)


def load(task: str, **settings: Any) -> DMControl:
    """The simulator of a task, see `DMControl`."""
    return (Reacher if TASKS[task][0] == "reacher" else DMControl)(task, **settings)

"""RoboDesk from pixels: a desk with a drawer, a slide, three buttons and three blocks, and a Franka arm.

Of the package `robodesk` the model alone is used, which is found without importing it (or `gym`). Physics, inverse
kinematics and rewards are written anew after robodesk 1.0.0, with two of its faults mended: the places of the blocks at
the start are kept, not views that move with them, so "the other blocks did not move" means something; and all
randomness follows from the seed of a reset. As upstream a frame is 20 ms: one solution of the inverse kinematics, ten
steps of physics.

Seven of the tasks, `PAPER_TASKS`, are those of VP2 and of iVideoGPT. VP2 holds an action for 50 frames, 15 times:
`make(..., action_repeat=50, episode_frames=750)`.

References: Kannan et al., RoboDesk, 2021; Tian et al., VP2, ICLR 2023, arXiv 2304.13723.
"""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import InvalidSetting, NoExpert, nearest
from .rendering import Renderer, camera_id, choose_backend
from .robodesk_experts import EXPERTS
from .robodesk_rewards import BLOCKS, RULES, Scene
from .snapshot import MujocoSnapshot, MujocoState
from .wrappers import FrameResult

PAPER_TASKS = (
    "push-red",
    "push-green",
    "push-blue",
    "open-slide",
    "open-drawer",
    "upright-block-off-table",
    "flat-block-off-table",
)
SCORINGS = ("strict", "vp2")
CAMERA = "overhead"
STATE_SIZE = 73  # numbers of a state as VP2 stores it: positions and velocities of the arm, then of the rest

_JOINTS = 9  # of the arm: seven and two fingers; they come first in the state
_SOLVED = np.arange(6)  # the joints of the inverse kinematics; the wrist has an action of its own
_STEPS = 10  # of physics in a frame
_REACH, _TURN = 0.01, 0.02  # of an action of 1: metres, and a share of half the wrist's range
_DRAWN, _CROP = 120, (16.75, 25.0, 105.0, 88.75)  # pixels a side; left, top, right, bottom of what is kept
_ITERATIONS = 20  # of the inverse kinematics; those that find a place take at most 6


TASKS = tuple(RULES)


class State(NamedTuple):
    """A moment of an episode."""

    simulation: MujocoSnapshot
    places: dict[str, np.ndarray]  # of the blocks at the start


class RoboDesk:
    """One task as a `Simulator`.

    Success is upstream's, judged after each frame: a light's joint below -0.00453, the slide's above 0.55, the drawer's
    below -0.2, a block lower than 0.6, and so on. Where a block is to be pushed off the table, `scoring` says what of
    the others: with "strict" they must be within 1 cm of their start; with "vp2" they may be anywhere, since VP2 resets
    to a state before it judges it. (VP2 judges the end of each decision alone, and the start as well.)

    Args:
        task: one of `TASKS`.
        camera: "overhead" is upstream's, cropped and stretched to a square as there; others are drawn as they are.
        image_size: height and width of the images in pixels.
        render_quality: "fast" or "paper", see `rendering`; "paper" has upstream's colours.
        scoring: "strict" or "vp2".
        starts: states of VP2 by seed: resets to these seeds begin there (see `begin_at`), all others as drawn.

    Raises:
        InvalidSetting: there is no such camera, quality or scoring.
        ModuleNotFoundError: robodesk is not installed.
    """

    action_dim = 5  # along x, y and z, turn of the wrist, width of the gripper

    def __init__(
        self,
        task: str,
        *,
        camera: str | int,
        image_size: int,
        render_quality: str,
        scoring: str = "strict",
        starts: dict[int, np.ndarray] | None = None,
    ) -> None:
        if scoring not in SCORINGS:
            raise InvalidSetting(f"unknown scoring {scoring!r}{nearest(scoring, SCORINGS)} (strict or vp2)")
        choose_backend()
        import mujoco

        self._mujoco, self._task, self._size = mujoco, task, image_size
        self.starts = {} if starts is None else starts
        self._model = _load_model()
        self._data = mujoco.MjData(self._model)
        self._scene = Scene(self._data, {}, scoring == "strict")
        self._kinematics = _Kinematics(self._model)
        self._bounds = self._model.actuator_ctrlrange[:_JOINTS].copy()  # (9, 2): lowest and highest
        self._simulation = MujocoState(self._model, self._data)
        number = camera_id(self._model, camera)
        self._cropped = number == self._model.camera(CAMERA).id
        self._renderer = Renderer(
            self._model, number, max(_DRAWN, image_size) if self._cropped else image_size, render_quality
        )

    def reset(self, seed: int) -> None:
        """Starts an episode; drawer, slide, blocks and arm are drawn from `seed`, distributed as upstream."""
        if (state := self.starts.get(seed)) is not None:
            self.begin_at(state)
            return
        random = np.random.default_rng(seed).uniform
        self._mujoco.mj_resetData(self._model, self._data)
        joint = self._data.joint
        joint("drawer_joint").qpos -= random(0.0, 0.1)
        joint("slide_joint").qpos += random(0.0, 0.2)
        joint("flat_block").qpos[:2] += random((0.0, 0.0), (0.3, 0.07))
        joint("ball").qpos[:2] += random((0.0, 0.0), (0.48, 0.08))
        joint("upright_block").qpos[:2] += random((0.05, 0.0), (0.35, 0.05))
        pose = np.array([-0.30, -0.4, 0.28, -2.5, 0.13, 1.87, 0.91, 0.01, 0.01])
        self._data.qpos[:_JOINTS] = pose + 0.15 * random(*self._bounds.T)
        self._begin()

    def begin_at(self, state: np.ndarray) -> None:
        """Starts an episode from a state of VP2: positions and velocities of the arm (9, 9), then of the rest (29, 26).

        Numbers behind these, float (73,), are not looked at: VP2 puts the place of the hand there.
        """
        arm, turning, rest, moving = np.split(np.asarray(state, np.float64)[:STATE_SIZE], [9, 18, 47])
        self._mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:], self._data.qvel[:] = np.concatenate([arm, rest]), np.concatenate([turning, moving])
        self._begin()

    def advance(self, action: np.ndarray) -> FrameResult:
        """Simulates one frame, in which the hand goes for a place at most 1 cm away on each axis."""
        data, wanted = self._data, self._aim(action.astype(np.float64))
        for _ in range(_STEPS):
            data.ctrl[:_JOINTS] = wanted
            data.qfrc_applied[:_JOINTS] = data.qfrc_bias[:_JOINTS]  # so that the arm has no weight
            # Not mj_step, which leaves positions in space one step behind: the next action begins from them.
            self._mujoco.mj_step2(self._model, data)
            self._mujoco.mj_step1(self._model, data)
        rule, thing = RULES[self._task]
        reward, success = rule(self._scene, thing)
        return FrameResult(float(min(1.0, max(0.0, reward))), success, False)

    def render(self) -> np.ndarray:
        """Draws the present state: uint8 (3, H, W)."""
        drawn = self._renderer.render(self._data)
        if not self._cropped:
            return drawn
        from PIL import Image

        left, top, right, bottom = (side * drawn.shape[-1] / _DRAWN for side in _CROP)
        part = Image.fromarray(np.ascontiguousarray(drawn.transpose(1, 2, 0))).crop((left, top, right, bottom))
        square = np.asarray(part.resize((self._size, self._size), Image.Resampling.LANCZOS))  # (H, W, 3)
        return np.ascontiguousarray(square.transpose(2, 0, 1))

    def snapshot(self) -> State:
        """The present state of the simulation, and where the blocks were at the start."""
        return State(self._simulation.snapshot(), self._scene.places)

    def restore(self, snapshot: State) -> None:
        """Goes back to a snapshot of this task."""
        self._simulation.restore(snapshot.simulation)
        self._scene.places = snapshot.places

    def expert_action(self, action_repeat: int) -> np.ndarray:
        """What a script of this project does in the present state: float32 (5,) in [-1, 1].

        Raises:
            NoExpert: the task has none.
        """
        if self._task not in EXPERTS:
            raise NoExpert(f"robodesk/{self._task} has no scripted expert (these have: {', '.join(EXPERTS)})")
        action = EXPERTS[self._task](self._scene, action_repeat)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._renderer.close()

    def _begin(self) -> None:
        self._mujoco.mj_forward(self._model, self._data)
        self._scene.places = {block: self._scene.body(block).copy() for block in BLOCKS}

    def _aim(self, action: np.ndarray) -> np.ndarray:
        """Positions of the arm's joints that are asked for, (9,)."""
        joints = self._kinematics.solve(self._data.qpos, self._scene.hand + action[:3] * _REACH)
        low, high = self._bounds.T
        turn, width = (((action[k] + 1) * (high[j] - low[j])) / 2 + low[j] for k, j in ((3, 6), (4, 7)))
        joints[6] = np.clip(_TURN * turn + self._data.qpos[6], low[6], high[6])
        joints[7:] = width
        return joints


class _Kinematics:
    """From a place of the hand to joints: the one of dm_control 1.0.28 with its usual settings, to the last bit.

    Where the arm cannot reach, dm_control tries 100 times and returns the last of the places that its search jumps
    between; this gives up after 20 and returns the best of them.
    """

    def __init__(self, model: Any) -> None:
        import mujoco

        self._mujoco, self._model, self._data = mujoco, model, mujoco.MjData(model)
        self._hand = model.site("end_effector").id
        self._jacobian = np.empty((3, model.nv))

    def solve(self, positions: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Positions of all joints (n,) to begin with, a place (3,) in metres -> of the arm's, (9,)."""
        data, best, nearest_yet = self._data, positions[:_JOINTS].copy(), np.inf
        data.qpos[:] = positions
        for _ in range(_ITERATIONS):
            self._mujoco.mj_kinematics(self._model, data)
            missing = place - data.site_xpos[self._hand]
            error = float(np.linalg.norm(missing))
            if error < nearest_yet:
                best, nearest_yet = data.qpos[:_JOINTS].copy(), error
            if error < 1e-14:
                return data.qpos[:_JOINTS].copy()
            self._mujoco.mj_comPos(self._model, data)
            self._mujoco.mj_jacSite(self._model, data, self._jacobian, None, self._hand)
            jacobian = self._jacobian[:, _SOLVED]  # (3, 6)
            curvature, slope = jacobian.T.dot(jacobian), jacobian.T.dot(missing)
            if error > 0.1:  # metres
                change = np.linalg.solve(curvature + 0.03 * np.eye(len(_SOLVED)), slope)
            else:
                change = np.linalg.lstsq(curvature, slope, rcond=-1)[0]
            size = np.linalg.norm(change)
            if error / size > 20.0:  # it no longer comes nearer
                return data.qpos[:_JOINTS].copy()
            if size > 2.0:
                change *= 2.0 / size
            data.qpos[_SOLVED] += change
        return best


def _load_model() -> Any:
    """The package's model with upstream's view of it as a camera."""
    import mujoco

    found = importlib.util.find_spec("robodesk")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'robodesk'")
    spec = mujoco.MjSpec.from_file(str(Path(found.submodule_search_locations[0]) / "assets" / "desk.xml"))
    # 1.8 m from (0, 0.535, 1.1), 60 degrees above the horizon, looking along y.
    back, up = 1.8 * np.cos(np.pi / 3), 1.8 * np.sin(np.pi / 3)
    tilt = [np.cos(np.pi / 12), np.sin(np.pi / 12), 0.0, 0.0]
    spec.worldbody.add_camera(name=CAMERA, pos=[0.0, 0.535 - back, 1.1 + up], quat=tilt, fovy=45.0)
    return spec.compile()

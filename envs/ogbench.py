"""OGBench's manipulation tasks from pixels: cubes, or a scene with a drawer, a window and two buttons, and a UR5e arm.

A task is a start and a goal, five of each environment: `ogbench/cube-single-task1` is one of them, of
`ogbench/cube-single` every episode draws one. What is to be reached is not in the image; it is for whoever plans
towards a goal frame (`make plan GOAL=expert`), or for an agent that learns one task. A reward is minus the number of
things that are not in their place, as in OGBench's single-task variants.

As in OGBench's `visual-` environments the arm is transparent, targets are hidden and the camera is `front_pixels`; its
own renderer draws nothing here. A frame is a control step of 50 ms.

Reference: Park et al., OGBench, ICLR 2025, arXiv 2410.20092; ogbench 1.2.2.
"""

from typing import Any

import gymnasium
import numpy as np

from .rendering import Renderer, camera_id, choose_backend
from .snapshot import MujocoSnapshot, MujocoState
from .wrappers import FrameResult

ENVIRONMENTS = ("cube-single", "cube-double", "scene")
TASKS = tuple(name for kind in ENVIRONMENTS for name in (kind, *(f"{kind}-task{i}" for i in range(1, 6))))
EPISODE_FRAMES = {"cube-single": 200, "cube-double": 500, "scene": 750}
OPEN = -0.16  # of the drawer's joint
CLOSE = 0.04  # that far a thing is in its place, metres


class OGBench:
    """One task as a `Simulator`.

    Args:
        task: one of `TASKS`.
        camera: a camera of the simulator, such as "front_pixels".
        image_size: height and width of the images in pixels.
        render_quality: "fast" or "paper", see `rendering`.
    """

    action_dim = 5

    def __init__(self, task: str, *, camera: str | int, image_size: int, render_quality: str) -> None:
        choose_backend()
        import mujoco

        self._mujoco = mujoco
        kind, _, number = task.partition("-task")
        self._task_id = int(number) if number else None
        # After a step the cubes' environment has bodies and sites where they were 2 ms before, the scene's has not. The
        # image and the next action would then be others than those from a restored snapshot.
        self._lags = kind != "scene"
        self.episode_frames = EPISODE_FRAMES[kind]
        self._actions = gymnasium.spaces.Box(-1.0, 1.0, (self.action_dim,), np.float32)
        self._env = _make(kind, self._actions)
        self._env.reset(seed=0, options={"task_id": 1})
        self._model, self._data = self._env._model, self._env._data
        for name, value in vars(self._env).items():
            if isinstance(value, list):  # parts of the model, and tables: none of the state
                setattr(self._env, name, tuple(value))
        # The lock of the scene's drawer and window is a damping of the model.
        self._simulation = MujocoState(self._model, self._data, self._env, changing_model=kind == "scene")
        self._renderer = Renderer(self._model, camera_id(self._model, camera), image_size, render_quality)

    def reset(self, seed: int) -> None:
        """Starts an episode; the task, where none is named, its start and the arm are drawn from `seed`."""
        self._simulation.rebuild()
        self._actions.seed(seed)
        drawn = int(np.random.default_rng(seed).integers(1, self._env.num_tasks + 1))
        self._env.reset(seed=seed, options={"task_id": self._task_id or drawn})

    def advance(self, action: np.ndarray) -> FrameResult:
        """Simulates one control step."""
        self._env.step(action.astype(np.float64))
        if self._lags:
            self._mujoco.mj_forward(self._model, self._data)
        missing = [not reached for reached in self._reached()]
        return FrameResult(-float(sum(missing)), not any(missing), False)

    def render(self) -> np.ndarray:
        """Draws the present state: uint8 (3, H, W)."""
        return self._renderer.render(self._data)

    def snapshot(self) -> MujocoSnapshot:
        """The present state of the simulation."""
        return self._simulation.snapshot()

    def restore(self, snapshot: MujocoSnapshot) -> None:
        """Goes back to a snapshot of this task."""
        self._simulation.restore(snapshot)

    def matches(self, snapshot: MujocoSnapshot) -> bool:
        """Whether the cubes are within 4 cm of the snapshot's, and drawer, window and buttons as there.

        The tolerances are OGBench's own; the arm may be anywhere.
        """
        now, then = self._simulation.positions(), self._simulation.positions(snapshot)
        for i in range(self._env._num_cubes):
            first = self._model.joint(f"object_joint_{i}").qposadr[0]
            if np.linalg.norm(now[first : first + 3] - then[first : first + 3]) > CLOSE:
                return False
        if not hasattr(self._env, "_num_buttons"):
            return True
        slides = [self._model.joint(f"{name}_slide").qposadr[0] for name in ("drawer", "window")]
        buttons = snapshot.attributes[0]["_cur_button_states"]
        return bool(np.abs(now - then)[slides].max() <= CLOSE) and np.array_equal(self._env._cur_button_states, buttons)

    def expert_action(self, action_repeat: int) -> np.ndarray:
        """What OGBench's oracles do towards the first thing that is not in its place: float32 (5,) in [-1, 1]."""
        return _Expert(self._env, self._reached()).action()

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._renderer.close()

    def _reached(self) -> list[bool]:
        """Whether each thing is in its place: cubes, then buttons, drawer and window."""
        found = self._env._compute_successes()
        if not isinstance(found, tuple):
            return [bool(reached) for reached in found]
        cubes, buttons, drawer, window = found
        return [bool(reached) for reached in (*cubes, *buttons, drawer, window)]


def _make(kind: str, actions: gymnasium.spaces.Box) -> Any:
    """The environment of OGBench, which draws nothing and takes its random actions from `actions`."""
    from ogbench.manipspace.envs.cube_env import CubeEnv
    from ogbench.manipspace.envs.scene_env import SceneEnv

    class Undrawn:
        action_space = actions

        def compute_observation(self) -> np.ndarray:
            return np.zeros(0)

    base = SceneEnv if kind == "scene" else CubeEnv
    cls = type(f"Undrawn{base.__name__}", (Undrawn, base), {})
    return cls(
        env_type=kind.removeprefix("cube-"),
        ob_type="pixels",
        visualize_info=False,
        permute_blocks=False,
        terminate_at_goal=False,
        width=64,
        height=64,
    )


class _Expert:
    """OGBench's oracles, which know one target, brought to a whole task: which target comes next.

    Stateless: an oracle of this kind looks at the present state alone.
    """

    def __init__(self, env: Any, reached: list[bool]) -> None:
        self.env, self.reached = env, reached
        self.info = env.compute_ob_info()
        self.cubes = [np.asarray(self.info[f"privileged/block_{i}_pos"]) for i in range(env._num_cubes)]
        self.goals = [env._data.mocap_pos[i].copy() for i in env._cube_target_mocap_ids]

    def action(self) -> np.ndarray:
        act = self._scene() if hasattr(self.env, "_num_buttons") else self._cube(self._next_cube())
        return np.asarray(np.clip(act, -1.0, 1.0), np.float32)

    def _next_cube(self) -> int:
        """The lowest goal first: on it another may be stacked."""
        order = sorted(range(len(self.cubes)), key=lambda i: self.goals[i][2])
        return next((i for i in order if not self.reached[i]), order[-1])

    def _cube(self, i: int, goal: np.ndarray | None = None) -> np.ndarray:
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle

        targets = {"target_block": i, "target_block_pos": self.goals[i] if goal is None else goal}
        return self._asked(CubeMarkovOracle, targets | {"target_block_yaw": np.zeros(1)})

    def _scene(self) -> np.ndarray:
        """Cube, drawer, window, buttons, in this order; what is locked or shut in is opened first."""
        env, (cube, *buttons, _, _) = self.env, self.reached
        inside, put_inside = env._is_in_drawer(self.cubes[0]), self.goals[0][1] < -0.2
        placed = inside if put_inside else cube
        wanted = {
            "drawer": OPEN if not placed and (inside or put_inside) else env._target_drawer_pos,
            "window": env._target_window_pos,
        }
        for name, target in wanted.items():  # a hand that leaves too early takes the handle with it
            if self._holds(name) and self._is_at(name, target):
                return self._slide(name, target)
        if not placed and self._is_at("drawer", wanted["drawer"]):
            return self._cube(0, env._drawer_center if put_inside else None)
        for name, target in wanted.items():
            if not self._is_at(name, target):
                return self._slide(name, target)
        wrong = next((i for i, reached in enumerate(buttons) if not reached), 0)
        return self._press(wrong, int(env._target_button_states[wrong]))

    def _is_at(self, name: str, target: float) -> bool:
        return bool(abs(self.info[f"privileged/{name}_pos"][0] - target) <= CLOSE)

    def _holds(self, name: str) -> bool:
        hand, handle = self.info["proprio/effector_pos"], self.info[f"privileged/{name}_handle_pos"]
        return bool(np.linalg.norm(hand - handle) < 2 * CLOSE)

    def _slide(self, name: str, target: float) -> np.ndarray:
        from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
        from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle

        lock = 0 if name == "drawer" else 1
        if self.env._cur_button_states[lock] == 0:
            return self._press(lock, 1)
        handle, position = self.info[f"privileged/{name}_handle_pos"], self.info[f"privileged/{name}_pos"][0]
        joint = self.env._model.joint(f"{name}_slide")
        axis = self.env._data.xmat[self.env._model.jnt_bodyid[joint.id]].reshape(3, 3) @ joint.axis
        targets = {f"target_{name}_handle_pos": handle + (target - position) * axis}
        return self._asked(DrawerMarkovOracle if name == "drawer" else WindowMarkovOracle, targets)

    def _press(self, button: int, state: int) -> np.ndarray:
        from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle

        top = self.env._data.site_xpos[self.env._button_site_ids[button]].copy()
        targets = {"target_button": button, "target_button_state": state, "target_button_top_pos": top}
        return self._asked(ButtonMarkovOracle, targets)

    def _asked(self, kind: Any, targets: dict[str, Any]) -> np.ndarray:
        oracle = kind(env=self.env)
        # It ends an episode somewhere random; ours ends above the middle of the table.
        oracle._final_pos, oracle._final_yaw = self.env._arm_sampling_bounds.mean(0), 0.0
        oracle._step, oracle._done = 0, False
        return np.asarray(
            oracle.select_action(None, self.info | {f"privileged/{key}": value for key, value in targets.items()})
        )

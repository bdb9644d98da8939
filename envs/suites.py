"""The table of suites: everything that the rest of the project knows about one stands in its row.

A new suite is one file with a `wrappers.Simulator` and one row of `SUITES`. Its packages are imported when one of its
tasks is made, not before.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from . import dmcontrol, metaworld, toy
from .errors import InvalidSetting, MissingPackage, UnknownTask, nearest
from .wrappers import PixelEnv, Simulator

USUAL_CAMERA = "corner"  # the default of `make`, in every suite: the usual camera of the task


@dataclasses.dataclass(frozen=True)
class Suite:
    """One row."""

    name: str  # before the slash in a task's name, and in configs/tasks/<name>.yaml
    tasks: tuple[str, ...]  # without the suite's name
    simulator: Callable[..., Simulator]  # (task, *, camera, image_size, render_quality)
    usual_camera: Callable[[str], str | int]  # of a task
    episode_frames: int  # length of an episode, if `make` is not told another
    highest_reward: float | None  # of a frame, for scores as shares of the highest return; None: the score is success
    terminates: bool  # whether a task can end before its time limit
    experts: bool  # whether its simulators have an `expert_action(action_repeat)` to take demonstrations from
    packages: tuple[str, ...]  # as pip names them; other versions of these are other tasks
    prefixes: tuple[str, ...]  # of its tasks in other people's results ("dmc_walker_walk"), first the one to write

    @property
    def reports_success(self) -> bool:
        return self.highest_reward is None

    def full_name(self, task: str) -> str:
        """The canonical name of a task: those of the first suite have no prefix."""
        return task if self is SUITES[0] else f"{self.name}/{task}"


SUITES = (
    Suite(
        name="metaworld",
        tasks=metaworld.TASKS,
        simulator=metaworld.MetaWorld,
        usual_camera=lambda task: "corner",
        episode_frames=200,
        highest_reward=None,
        terminates=False,  # `SawyerXYZEnv.step` never says so
        experts=True,
        packages=("metaworld", "mujoco"),
        prefixes=("metaworld", "mw"),
    ),
    Suite(
        name="dm_control",
        tasks=tuple(sorted(dmcontrol.TASKS)),
        simulator=dmcontrol.DMControl,
        usual_camera=dmcontrol.usual_camera,
        episode_frames=1000,
        highest_reward=1.0,
        terminates=False,  # only lqr would, which is left out
        experts=False,
        packages=("dm-control", "mujoco"),
        prefixes=("dmc", ""),
    ),
    Suite(
        name="toy",
        tasks=toy.TASKS,
        simulator=toy.Toy,
        usual_camera=lambda task: 0,
        episode_frames=40,
        highest_reward=None,
        terminates=False,
        experts=True,
        packages=(),
        prefixes=("toy",),
    ),
)


def suite_of(task: str) -> Suite:
    """The row of a task by its canonical name; only the part before the slash is looked at.

    Raises:
        UnknownTask: there is no such suite.
    """
    name = task.rpartition("/")[0] or SUITES[0].name
    for suite in SUITES:
        if suite.name == name:
            return suite
    raise UnknownTask(f"unknown suite {name!r} of the task {task!r} (known: {', '.join(s.name for s in SUITES)})")


def task_names() -> list[str]:
    """The canonical names of all tasks; those of Meta-world have no prefix."""
    return [suite.full_name(task) for suite in SUITES for task in suite.tasks]


def canonical(task: str) -> str:
    """The one spelling of a task's name, after which its run folder is named.

    "metaworld/coffee-push", "coffee_push", "Coffee-Push" and "coffee-push-v3" are all "coffee-push";
    "dm_control/walker_walk" is "dm_control/walker-walk".

    Raises:
        UnknownTask: no task has this name; the line gives the most similar one.
    """
    suite, _, name = task.strip().lower().rpartition("/")
    suite, name = suite.replace("-", "_"), name.replace("_", "-")
    if suite in ("", SUITES[0].name):
        spelled = name.removesuffix("-v3")  # Meta-world's own names end in it
    else:
        spelled = f"{suite}/{name}"
    if spelled not in task_names():
        raise UnknownTask(f"unknown task {task!r}{nearest(spelled, task_names())}")
    return spelled


def make(
    task: str,
    seed: int = 0,
    *,
    action_repeat: int = 2,
    frame_stack: int = 3,
    episode_frames: int | None = None,
    success_bonus: float = 10.0,
    camera: str | int = USUAL_CAMERA,
    image_size: int = 64,
    render_quality: str = "fast",
) -> PixelEnv:
    """Makes a task as a gymnasium environment; see `wrappers.PixelEnv` for its contract.

    Args:
        task: "coffee-push" or "metaworld/coffee-push", "dm_control/walker-walk", ...: see `task_names`.
        seed: begins the stream of seeds for resets without one.
        action_repeat: frames per decision.
        frame_stack: images per observation.
        episode_frames: frames per episode; None is the suite's own length: 200 for Meta-world, 1000 for dm_control.
        success_bonus: added to the reward of a decision that touched success (dm_control never does).
        camera: a camera's name or number; "corner" is the usual camera in every suite. The toy has only one.
        image_size: height and width of the images in pixels.
        render_quality: "fast", or "paper" with shadows and fourfold multisampling.

    Raises:
        UnknownTask, InvalidSetting, MissingGL, MissingPackage: one line each.
    """
    name = canonical(task)
    if image_size < 1:
        raise InvalidSetting(f"image_size must be at least 1, not {image_size}")
    suite, own_name = suite_of(name), name.rpartition("/")[2]
    settings: dict[str, Any] = dict(
        camera=suite.usual_camera(own_name) if camera == USUAL_CAMERA else camera,
        image_size=image_size,
        render_quality=render_quality,
    )
    try:
        simulator = suite.simulator(own_name, **settings)
    except ModuleNotFoundError as error:
        raise MissingPackage(
            f"{name} needs a package that is not installed ({error}): pip install {' '.join(suite.packages)}"
        ) from error
    return PixelEnv(
        simulator,
        seed,
        action_repeat=action_repeat,
        frame_stack=frame_stack,
        episode_frames=suite.episode_frames if episode_frames is None else episode_frames,
        success_bonus=success_bonus,
        image_size=image_size,
    )

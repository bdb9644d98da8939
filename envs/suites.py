"""The table of suites: everything that the rest of the project knows about one stands in its row.

A new suite is one file with a `wrappers.Simulator` and one row of `SUITES`. Its packages are imported when one of its
tasks is made, not before.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Callable
from typing import Any

import gymnasium

from . import dmcontrol, gym, metaworld, ogbench, robodesk, toy
from .errors import PIP, InvalidSetting, MissingPackage, UnknownTask, nearest
from .wrappers import PixelEnv, Simulator

USUAL_CAMERA = "corner"  # the default of `make`, in every suite: the usual camera of the task
GYM = "gym"  # the suite of every environment that is registered elsewhere, `gym:<package>:<Id>`
GYM_TASK = re.compile(r"\w+(\.\w+)*:[\w-][\w:.-]*(/[\w-][\w:.-]*)?")
NAMESPACE = "ivideogpt"  # of our tasks in gymnasium's registry


@dataclasses.dataclass(frozen=True)
class Suite:
    """One row."""

    name: str  # before the slash in a task's name, and in configs/tasks/<name>.yaml
    tasks: tuple[str, ...]  # without the suite's name
    simulator: Callable[..., Simulator]  # (task, *, camera, image_size, render_quality)
    usual_camera: Callable[[str], str | int]  # of a task
    episode_frames: int  # length of an episode, if `make` is not told another; 0: the simulator says it
    highest_reward: float | None  # of a frame, for scores as shares of the highest return; None: the score is success
    terminates: bool  # whether a task can end before its time limit
    experts: tuple[str, ...]  # the tasks whose simulator has an `expert_action(action_repeat)`, for demonstrations
    packages: tuple[str, ...]  # as pip names them; other versions of these are other tasks
    prefixes: tuple[str, ...]  # of its tasks in other people's results ("dmc_walker_walk"), first the one to write
    install: str = ""  # what pip is to be told where they are missing, if not their names
    options: tuple[str, ...] = ()  # keywords of `make` that its simulator takes and others do not know

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
        experts=metaworld.TASKS,
        packages=("metaworld", "mujoco"),
        prefixes=("metaworld", "mw"),
    ),
    Suite(
        name="dm_control",
        tasks=tuple(sorted(dmcontrol.TASKS)),
        simulator=dmcontrol.load,
        usual_camera=dmcontrol.usual_camera,
        episode_frames=1000,
        highest_reward=1.0,
        terminates=False,  # only lqr would, which is left out
        experts=(),
        packages=("dm-control", "mujoco"),
        prefixes=("dmc", ""),
    ),
    Suite(
        name="ogbench",
        tasks=ogbench.TASKS,
        simulator=ogbench.OGBench,
        usual_camera=lambda task: "front_pixels",
        episode_frames=0,
        highest_reward=None,
        terminates=False,
        experts=ogbench.TASKS,
        packages=("ogbench", "dm-control", "mujoco"),
        prefixes=("ogbench",),
    ),
    Suite(
        name="robodesk",
        tasks=robodesk.TASKS,
        simulator=robodesk.RoboDesk,
        usual_camera=lambda task: robodesk.CAMERA,
        episode_frames=500,
        highest_reward=None,
        terminates=False,
        experts=tuple(robodesk.EXPERTS),
        packages=("robodesk", "mujoco"),
        prefixes=("robodesk",),
        install="--no-deps robodesk==1.0.0",  # without gym, of which nothing is used
        options=("scoring", "starts"),
    ),
    Suite(
        name="toy",
        tasks=toy.TASKS,
        simulator=toy.Toy,
        usual_camera=lambda task: 0,
        episode_frames=40,
        highest_reward=None,
        terminates=False,
        experts=toy.TASKS,
        packages=(),
        prefixes=("toy",),
    ),
    Suite(
        name=GYM,
        tasks=(),  # no list holds them
        simulator=gym.Gym,
        usual_camera=lambda task: "",
        episode_frames=0,
        highest_reward=None,
        terminates=True,
        experts=(),
        packages=(),  # see `packages_of`
        prefixes=(GYM,),
        options=("success_key", "image_key"),
    ),
)


def _split(task: str) -> tuple[str, str]:
    """The name of the suite and the task's own, of a canonical name."""
    if task.startswith(f"{GYM}:"):
        return GYM, task.removeprefix(f"{GYM}:")
    suite, _, own_name = task.rpartition("/")
    return suite or SUITES[0].name, own_name


def suite_of(task: str) -> Suite:
    """The row of a task by its canonical name; only the part before the slash or the first colon is looked at.

    Raises:
        UnknownTask: there is no such suite.
    """
    name, _ = _split(task)
    for suite in SUITES:
        if suite.name == name:
            return suite
    raise UnknownTask(f"unknown suite {name!r} of the task {task!r} (known: {', '.join(s.name for s in SUITES)})")


def packages_of(task: str) -> tuple[str, ...]:
    """What the simulator of a task comes with, as pip names it; other versions of it are other tasks."""
    suite, own_name = suite_of(task), _split(task)[1]
    return (re.split(r"[:.]", own_name)[0],) if suite.name == GYM else suite.packages


def check_installed(task: str) -> None:
    """Whether the packages of a task, by its canonical name, are there; imports none of them. Raises MissingPackage."""
    for package in packages_of(task):
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise _missing(task, f"no module named {package!r}")


def _missing(task: str, reason: object) -> MissingPackage:
    suite, packages = suite_of(task), " ".join(packages_of(task))
    command = f"{packages}, if pip calls it so" if suite.name == GYM else suite.install or packages
    return MissingPackage(f"{task} needs a package that is not installed ({reason}): {PIP} install {command}")


def has_expert(task: str) -> bool:
    """Whether a task, by its canonical name, has a scripted expert to take demonstrations from."""
    suite, own_name = suite_of(task), _split(task)[1]
    return own_name in suite.experts


def task_names() -> list[str]:
    """The canonical names of all tasks; those of Meta-world have no prefix."""
    return [suite.full_name(task) for suite in SUITES for task in suite.tasks]


def canonical(task: str) -> str:
    """The one spelling of a task's name, after which its run folder is named.

    "metaworld/coffee-push", "coffee_push", "Coffee-Push" and "coffee-push-v3" are all "coffee-push";
    "dm_control/walker_walk" is "dm_control/walker-walk". `gym:<package>:<Id>` is as it is; whether there is such an
    environment is seen when it is made.

    Raises:
        UnknownTask: no task has this name; the line gives the most similar one.
    """
    if task.strip().startswith(f"{GYM}:"):
        if not GYM_TASK.fullmatch(_split(task.strip())[1]):
            raise UnknownTask(f"unknown task {task!r}: write gym:<package>:<Id>, such as gym:gymnasium:Pendulum-v1")
        return task.strip()
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
    success_key: str | None = None,
    image_key: str | None = None,
    scoring: str | None = None,
    starts: dict[int, Any] | None = None,
) -> PixelEnv:
    """Makes a task as a gymnasium environment; see `wrappers.PixelEnv` for its contract.

    Args:
        task: "coffee-push" or "metaworld/coffee-push", "dm_control/walker-walk", ...: see `task_names`; or
            "gym:<package>:<Id>", see `gym`.
        seed: begins the stream of seeds for resets without one.
        action_repeat: frames per decision.
        frame_stack: images per observation.
        episode_frames: frames per episode; None is the suite's own length: 200 for Meta-world, 1000 for dm_control,
            that of a gymnasium environment less what does not fill a decision.
        success_bonus: added to the reward of a decision that touched success (dm_control never does).
        camera: a camera's name or number; "corner" is the usual camera in every suite. The toy has only one.
        image_size: height and width of the images in pixels.
        render_quality: "fast", or "paper" with shadows and fourfold multisampling.
        success_key, image_key: of gymnasium environments, see `gym.Gym`.
        scoring, starts: of RoboDesk, see `robodesk.RoboDesk`.

    Raises:
        UnknownTask, InvalidSetting, MissingGL, MissingPackage: one line each.
    """
    name = canonical(task)
    if image_size < 1:
        raise InvalidSetting(f"image_size must be at least 1, not {image_size}")
    suite, own_name = suite_of(name), _split(name)[1]
    options = _options(suite, name, success_key=success_key, image_key=image_key, scoring=scoring, starts=starts)
    settings: dict[str, Any] = dict(
        camera=suite.usual_camera(own_name) if camera == USUAL_CAMERA else camera,
        image_size=image_size,
        render_quality=render_quality,
    )
    try:
        simulator = suite.simulator(own_name, **settings, **options)
    except ModuleNotFoundError as error:
        raise _missing(name, error) from error
    if episode_frames is None:
        episode_frames = suite.episode_frames or _own_length(simulator, action_repeat)
    return PixelEnv(
        simulator,
        seed,
        action_repeat=action_repeat,
        frame_stack=frame_stack,
        episode_frames=episode_frames,
        success_bonus=success_bonus,
        image_size=image_size,
    )


def _options(suite: Suite, task: str, **given: Any) -> dict[str, Any]:
    """Those of the keywords that were given. Raises InvalidSetting: one that is another suite's."""
    options = {key: value for key, value in given.items() if value is not None}
    for key, value in options.items():
        if key not in suite.options:
            owner = next(other.name for other in SUITES if key in other.options)
            named = f"{GYM}:<package>:<Id>" if owner == GYM else f"{owner}/<task>"
            raise InvalidSetting(f"{key}={value} is for {named}, not for {task}")
    return options


def _own_length(simulator: Any, action_repeat: int) -> int:
    """The simulator's own episode length, in whole decisions; `PixelEnv` checks `action_repeat`."""
    return int(simulator.episode_frames) // max(action_repeat, 1) * action_repeat


def _registered(task: str, render_mode: str = "rgb_array", **keywords: Any) -> PixelEnv:
    """What `gymnasium.make` calls."""
    if render_mode != "rgb_array":
        raise InvalidSetting(f"render_mode={render_mode}: {task} is drawn as rgb_array only")
    return make(task, **keywords)


def register() -> None:
    """Makes every task known to gymnasium: `gymnasium.make("ivideogpt/coffee-push-v0")`, with the keywords of `make`.

    The slash of other suites is a dash: "ivideogpt/dm_control-walker-walk-v0".
    """
    for task in task_names():
        gymnasium.register(
            f"{NAMESPACE}/{task.replace('/', '-')}-v0", entry_point=f"{__name__}:_registered", kwargs={"task": task}
        )

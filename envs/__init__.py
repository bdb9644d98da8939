"""Tasks from pixels behind one gymnasium interface: Meta-world, the DM Control suite and a toy for tests.

    import envs
    env = envs.make("coffee-push", seed=1)
    obs, info = env.reset()                                   # uint8 (9, 64, 64)
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())

To add a suite, write a `wrappers.Simulator` in a file of its own and give it a prefix in `canonical` and
`make`.
"""

from . import dmcontrol, metaworld, toy
from .errors import (
    EpisodeOver,
    ExpertFailed,
    InvalidAction,
    InvalidSetting,
    MissingGL,
    NoExpert,
    UnknownTask,
    nearest,
)
from .wrappers import PixelEnv, Simulator

__all__ = [
    "EpisodeOver",
    "ExpertFailed",
    "InvalidAction",
    "InvalidSetting",
    "MissingGL",
    "NoExpert",
    "PixelEnv",
    "UnknownTask",
    "canonical",
    "make",
    "task_names",
]


def task_names() -> list[str]:
    """The canonical names of all tasks; those of Meta-world have no prefix."""
    return [
        *metaworld.TASKS,
        *(f"dm_control/{task}" for task in sorted(dmcontrol.TASKS)),
        *(f"toy/{task}" for task in toy.TASKS),
    ]


def canonical(task: str) -> str:
    """The one spelling of a task's name, after which its run folder is named.

    "metaworld/coffee-push", "coffee_push", "Coffee-Push" and "coffee-push-v3" are all "coffee-push";
    "dm_control/walker_walk" is "dm_control/walker-walk".

    Raises:
        UnknownTask: no task has this name; the line gives the most similar one.
    """
    suite, _, name = task.strip().lower().rpartition("/")
    name = name.replace("_", "-")
    if suite in ("", "metaworld"):
        spelled = name.removesuffix("-v3")
    else:
        spelled = f"{suite.replace('-', '_')}/{name}"
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
    camera: str | int = "corner",
    image_size: int = 64,
    render_quality: str = "fast",
) -> PixelEnv:
    """Makes a task as a gymnasium environment; see `wrappers.PixelEnv` for its contract.

    Args:
        task: "coffee-push" or "metaworld/coffee-push", "dm_control/walker-walk", ...: see `task_names`.
        seed: begins the stream of seeds for resets without one.
        action_repeat: frames per decision.
        frame_stack: pictures per observation.
        episode_frames: frames per episode; None is 200 for Meta-world, 1000 for dm_control, 40 for the toy.
        success_bonus: added to the reward of a decision that touched success (dm_control never does).
        camera: a camera's name or number; "corner" is the usual camera in every suite. The toy has only one.
        image_size: height and width of the pictures in pixels.
        render_quality: "fast", or "paper" with shadows and fourfold multisampling.

    Raises:
        UnknownTask, InvalidSetting, MissingGL: one line each.
    """
    name = canonical(task)
    if image_size < 1:
        raise InvalidSetting(f"image_size must be at least 1, not {image_size}")
    simulator: Simulator
    if name.startswith("toy/"):
        simulator, own_length = toy.Toy(image_size=image_size, task=name.removeprefix("toy/")), toy.EPISODE_FRAMES
    elif name.startswith("dm_control/"):
        simulator = dmcontrol.DMControl(
            name.removeprefix("dm_control/"),
            camera=camera,
            image_size=image_size,
            render_quality=render_quality,
        )
        own_length = dmcontrol.EPISODE_FRAMES
    else:
        simulator = metaworld.MetaWorld(name, camera=camera, image_size=image_size, render_quality=render_quality)
        own_length = metaworld.EPISODE_FRAMES
    return PixelEnv(
        simulator,
        seed,
        action_repeat=action_repeat,
        frame_stack=frame_stack,
        episode_frames=own_length if episode_frames is None else episode_frames,
        success_bonus=success_bonus,
        image_size=image_size,
    )

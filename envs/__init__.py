"""Tasks from pixels behind one gymnasium interface: Meta-world, DM Control, OGBench, RoboDesk and a toy for tests.

    import envs
    env = envs.make("coffee-push", seed=1)
    obs, info = env.reset()                                   # uint8 (9, 64, 64)
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())

Importing it also makes the tasks known to gymnasium: `gymnasium.make("envs:ivideogpt/coffee-push-v0")`.
To add a suite, write a `wrappers.Simulator` in a file of its own and give it a row of the table in `suites`.
"""

from .errors import (
    PIP,
    EpisodeOver,
    ExpertFailed,
    InvalidAction,
    InvalidSetting,
    MissingGL,
    MissingPackage,
    NoExpert,
    UnknownTask,
    nearest,
)
from .suites import (
    SUITES,
    Suite,
    canonical,
    check_installed,
    has_expert,
    make,
    packages_of,
    register,
    suite_of,
    task_names,
)
from .wrappers import Comparable, PixelEnv, Simulator, Snapshot

__all__ = [
    "PIP",
    "SUITES",
    "Comparable",
    "EpisodeOver",
    "ExpertFailed",
    "InvalidAction",
    "InvalidSetting",
    "MissingGL",
    "MissingPackage",
    "NoExpert",
    "PixelEnv",
    "Simulator",
    "Snapshot",
    "Suite",
    "UnknownTask",
    "canonical",
    "check_installed",
    "has_expert",
    "make",
    "nearest",
    "packages_of",
    "suite_of",
    "task_names",
]

register()

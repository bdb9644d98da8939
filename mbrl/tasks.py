"""Every task by suite, and what the protocol gives it: `make tasks`, python -m mbrl.tasks [key=value ...]

`protocol=plain` lists what that protocol gives; `preset=small` how long a run of that preset is.
"""

import textwrap
from collections.abc import Sequence

import envs
from mbrl.experiment.command import command
from mbrl.experiment.settings import CONFIG_DIR, Settings, UserError, load, typed_keys

WIDTH = 110


def main(overrides: list[str]) -> None:
    chosen = load(overrides)
    if "task" in typed_keys(overrides):
        raise UserError(f"task={chosen.task}: this lists all of them")
    print(f"protocol={chosen.protocol} preset={chosen.preset}")
    for suite, names in suites().items():
        own = [name for name in names if (CONFIG_DIR / "tasks" / f"{name}.yaml").is_file()]
        common = next(name for name in names if name not in own)
        print(f"\n{suite}, {len(names)} tasks: {gives(load([*overrides, f'task={common}']))}{absent(common)}")
        for name in own:
            print(f"    {name:<28}{gives(load([*overrides, f'task={name}']))}")
        print(wrapped([name for name in names if name not in own]))
    example = "gym:gymnasium:Pendulum-v1"
    print(f"\ngym, any environment of gymnasium: {gives(load([*overrides, f'task={example}']))}")
    print(wrapped(["gym:<package>:<Id>", f"such as {example}"]))


def suites() -> dict[str, list[str]]:
    """The tasks of each suite, as they are typed."""
    found: dict[str, list[str]] = {}
    for name in envs.task_names():
        found.setdefault(name.split("/")[0] if "/" in name else "metaworld", []).append(name)
    return found


def absent(task: str) -> str:
    """A line for who has not installed the suite of a task."""
    try:
        envs.check_installed(task)
    except envs.MissingPackage as error:
        return f"\n    not installed: {str(error).rpartition(': ')[2]}"
    return ""


def gives(settings: Settings) -> str:
    """What the protocol of a task has: success and its bonus, demonstrations, and how long a run is."""
    s = settings
    bonus = f"+{s.success_bonus:g} for success" if s.success_bonus else "no bonus for success"
    demonstrations = f"{s.demonstrations} demonstrations" if s.demonstrations else "no demonstrations"
    if isinstance(s.demonstrations, str):
        demonstrations = f"the demonstrations of {s.demonstrations}"
    return f"{bonus}, {demonstrations}, {s.num_train_frames:,} frames"


def wrapped(names: Sequence[str]) -> str:
    # A name is typed in one piece, so it must not be broken at its dashes.
    indent = " " * 4
    return textwrap.fill(
        ", ".join(names), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


if __name__ == "__main__":
    command(main)

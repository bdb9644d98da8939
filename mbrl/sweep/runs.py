"""The runs that a sweep's overrides mean, and what a launcher gives for each."""

import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

from mbrl.experiment.logger import METRICS
from mbrl.experiment.run import LOG, run_folder
from mbrl.experiment.settings import Positive, Range, Settings, UserError, load, load_plain


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    jobs: Positive
    launcher: Literal["local", "slurm", "submitit"]
    partition: str
    hours: Annotated[float, Range(0.1)]
    cpus: Positive
    gpus: Annotated[int, Range(0, 1)]
    memory_gb: Annotated[float, Range(1.0)]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    settings: Settings
    overrides: tuple[str, ...]  # of `python -m mbrl.train`

    @property
    def folder(self) -> Path:
        return run_folder(self.settings)

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "mbrl.train", *self.overrides]

    def frame(self) -> int:
        """How far it is, from the end of its metrics.jsonl."""
        path = self.folder / METRICS
        if not path.exists():
            return 0
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 2**14))
            frames = re.findall(rb'\{"frame": (\d+),', file.read())
        return min(int(frames[-1]), self.settings.num_train_frames) if frames else 0

    def last_words(self) -> str:
        """The last line of its output: what went wrong, if anything did."""
        text = self.log.read_text(errors="replace")[-(2**14) :] if self.log.exists() else ""
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        return lines[-1] if lines else "it said nothing"


class Handle(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit code, None while it goes on."""

    def stop(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


Start = Callable[[PlannedRun, int], Handle]  # the number is the place, of `jobs`, that the run takes


def plan(overrides: Sequence[str]) -> tuple[SweepSettings, list[PlannedRun]]:
    """The runs that the overrides mean, seed by seed. Raises UserError if one of them could not be started."""
    own = {field.name for field in dataclasses.fields(SweepSettings)}
    sweep = load_plain(SweepSettings, "sweep", [override for override in overrides if _key(override) in own])
    varied: dict[str, list[str]] = {"seed": [], "task": [], "agent": []}
    common = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in varied:
            varied[key] = [f"{key}={one}" for one in (_seeds(value) if key == "seed" else _several(value))]
        elif key not in own:
            common.append(override)
    if sweep.launcher == "slurm":
        common = _for_nodes(common, sweep)
    if "threads" not in map(_key, common) and (threads := _threads(sweep)):
        common.append(f"threads={threads}")
    runs: dict[Path, PlannedRun] = {}
    for chosen in itertools.product(*(options or [""] for options in varied.values())):
        train = (*filter(None, chosen), *common)
        here = train
        if sweep.launcher == "slurm":  # this machine need not have the device that the runs will have
            here = (*(override for override in train if _key(override) != "device"), "device=cpu")
        run = PlannedRun(load(here), train)
        runs.setdefault(run.folder, run)
    return sweep, list(runs.values())


def _key(override: str) -> str:
    return override.partition("=")[0]


def _several(value: str) -> list[str]:
    return [part for part in value.strip("[]").split(",") if part]


def _seeds(value: str) -> list[int]:
    """1-5, or 1,2,8, or both."""
    seeds: list[int] = []
    for part in _several(value):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None:
            raise UserError(f"seed={value}: write seeds as 1-5, 1,2,8 or 1-3,8")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    if not seeds:
        raise UserError(f"seed={value} names no seed; write seeds as 1-5, 1,2,8 or 1-3,8")
    return seeds


def _for_nodes(overrides: list[str], sweep: SweepSettings) -> list[str]:
    """Device and preset as they would be chosen on a node, not on the machine that the sweep is typed on."""
    chosen = {"device": "cuda" if sweep.gpus else "cpu", "preset": "paper" if sweep.gpus else "small"}
    overrides = [override for override in overrides if override not in ("device=auto", "preset=auto")]
    return overrides + [f"{key}={value}" for key, value in chosen.items() if key not in map(_key, overrides)]


def _threads(sweep: SweepSettings) -> int:
    """For each run; 0 leaves torch's choice, as `make train` does."""
    if sweep.launcher == "slurm":
        return sweep.cpus
    return max(1, len(os.sched_getaffinity(0)) // sweep.jobs) if sweep.jobs > 1 else 0

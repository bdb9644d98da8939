"""The runs that a sweep's overrides mean, and what a launcher gives for each."""

import contextlib
import dataclasses
import itertools
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

from mbrl.experiment.logger import METRICS
from mbrl.experiment.run import LOG, run_folder
from mbrl.experiment.settings import Name, Range, Seed, Settings, UserError, convert, load, load_plain
from world_model.files import regular

PAUSE_S = 0.5  # between two looks at the runs
PATIENCE_S = 30.0  # for a run that was asked to stop; it loses nothing when it is killed after that

MOST_RUNS = 10_000  # of a sweep
SEARCH = "search"
TAIL = 2**14  # bytes at the end of a log that are looked at


@dataclasses.dataclass(frozen=True)
class SweepSettings:
    jobs: Annotated[int, Range(1, 10_000)]
    launcher: Literal["local", "slurm", "submitit"]
    partition: str
    hours: Annotated[float, Range(0.1, 1e5)]
    cpus: Annotated[int, Range(1, 1024)]
    gpus: Annotated[int, Range(0, 1)]
    memory_gb: Annotated[float, Range(1.0, 1e6)]
    search: str  # "" or what `mbrl/sweep/search.py` parses
    search_name: Name
    trials: Annotated[int, Range(1, 10_000)]
    objective: Literal["success_rate", "episode_return"]
    pruning: bool


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
        frames = re.findall(rb'\{"frame": (\d{1,18}),', tail(self.folder / METRICS))
        return min(int(frames[-1]), self.settings.num_train_frames) if frames else 0

    def last_words(self) -> str:
        """The last line of its output: what went wrong, if anything did."""
        text = tail(self.log).decode(errors="replace")
        lines = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
        return lines[-1] if lines else "it said nothing"


def tail(path: Path) -> bytes:
    """The end of a log; nothing of one that is not there or cannot be read."""
    try:
        with open(regular(path), "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            return file.read()
    except OSError:
        return b""


class Handle(Protocol):
    """A run that was started."""

    def poll(self) -> int | None:
        """Its exit code, None while it goes on."""

    def stop(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


def end(handles: Sequence[Handle]) -> None:
    """Lets what still runs stop by itself, for a while; another Ctrl-C shortens that."""
    for handle in handles:
        handle.stop()
    with contextlib.suppress(KeyboardInterrupt):
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and any(handle.poll() is None for handle in handles):
            time.sleep(0.1)
    for handle in handles:
        if handle.poll() is None:
            handle.kill()


Start = Callable[[PlannedRun, int], Handle]  # the number is the place, of `jobs`, that the run takes


def plan(overrides: Sequence[str]) -> tuple[SweepSettings, list[PlannedRun]]:
    """The runs that the overrides mean, seed by seed. Raises UserError if one of them could not be started."""
    own = {field.name for field in dataclasses.fields(SweepSettings)}
    # What is searched has commas and brackets that mean something else to Hydra.
    searched = "".join(word.partition("=")[2] for word in overrides if _key(word) == SEARCH)
    mine = [word for word in overrides if _key(word) in own - {SEARCH}]
    sweep = dataclasses.replace(load_plain(SweepSettings, "sweep", mine), search=searched)
    varied: dict[str, list[str]] = {"task": [], "agent": []}
    seeds: list[int | None] = [None]
    common = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "seed":
            seeds = [*_seeds(value)]
        elif key in varied:
            varied[key] = [f"{key}={one}" for one in _several(value)]
        elif key not in own:
            common.append(override)
    if sweep.launcher == "slurm":
        common = _for_nodes(common, sweep)
    if "threads" not in map(_key, common) and (threads := _threads(sweep)):
        common.append(f"threads={threads}")
    methods = [[*filter(None, chosen)] for chosen in itertools.product(*(words or [""] for words in varied.values()))]
    if (count := len(methods) * len(seeds)) > MOST_RUNS:
        raise UserError(f"that is {count:,} runs, and a sweep has at most {MOST_RUNS:,}")
    settings = [_load([*method, *common], sweep) for method in methods]
    runs: dict[Path, PlannedRun] = {}
    for seed in seeds:
        for method, chosen in zip(methods, settings, strict=True):
            of_seed = [] if seed is None else [f"seed={seed}"]
            own_settings = chosen if seed is None else dataclasses.replace(chosen, seed=seed)
            run = PlannedRun(own_settings, (*of_seed, *method, *common))
            runs.setdefault(run.folder, run)
    return sweep, list(runs.values())


def _load(train: Sequence[str], sweep: SweepSettings) -> Settings:
    """Of a run, whatever its seed. With Slurm, this machine need not have the device that the runs will have."""
    if sweep.launcher == "slurm":
        train = (*(override for override in train if _key(override) != "device"), "device=cpu")
    return load(train)


def _key(override: str) -> str:
    return override.partition("=")[0]


def _several(value: str) -> list[str]:
    return [part for part in value.strip("[]").split(",") if part]


def _seeds(value: str) -> list[int]:
    """1-5, or 1,2,8, or both."""
    seeds: list[int] = []
    for part in _several(value):
        match = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part)
        if match is None:
            raise UserError(f"seed={value}: write seeds as 1-5, 1,2,8 or 1-3,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if last - first >= MOST_RUNS - len(seeds):
            count = len(seeds) + last - first + 1
            raise UserError(f"seed={value}: that is {count:,} seeds, and a sweep has at most {MOST_RUNS:,} runs")
        seeds += (convert(Seed, seed, "seed") for seed in range(first, last + 1))
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

"""Many runs with one command: `make sweep TASK=coffee-push,hammer AGENT=mbpo,drqv2 SEEDS=1-5 JOBS=2`.

    python -m mbrl.sweep task=coffee-push,hammer agent=mbpo,drqv2 seed=1-5 jobs=2 [key=value ...]

Each run is `python -m mbrl.train` in a process of its own, so that none can hurt another; its output goes to sweep.log
in its run folder. Finished runs are skipped, broken ones continue, a failed one is named at the end. Keys of the sweep
itself stand in configs/sweep.yaml; `mbrl/slurm.py` sends the runs to a cluster.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from tqdm import tqdm

from mbrl.command import command
from mbrl.logger import METRICS
from mbrl.run import LOG, is_finished, run_folder
from mbrl.settings import Positive, Range, Settings, UserError, load, load_plain

PAUSE_S = 0.5  # between two looks at the runs
PATIENCE_S = 30.0  # for a run that was asked to stop; it loses nothing when it is killed after that


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
    words: tuple[str, ...]  # of `python -m mbrl.train`

    @property
    def folder(self) -> Path:
        return run_folder(self.settings)

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "mbrl.train", *self.words]

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


def plan(words: Sequence[str]) -> tuple[SweepSettings, list[PlannedRun]]:
    """The runs that the words mean, seed by seed. Raises UserError if one of them could not be started."""
    own = {field.name for field in dataclasses.fields(SweepSettings)}
    sweep = load_plain(SweepSettings, "sweep", [word for word in words if _key(word) in own])
    varied: dict[str, list[str]] = {"seed": [], "task": [], "agent": []}
    common = []
    for word in words:
        key, _, value = word.partition("=")
        if key in varied:
            varied[key] = [f"{key}={one}" for one in (_seeds(value) if key == "seed" else _several(value))]
        elif key not in own:
            common.append(word)
    if sweep.launcher == "slurm":
        common = _for_nodes(common, sweep)
    if "threads" not in map(_key, common) and (threads := _threads(sweep)):
        common.append(f"threads={threads}")
    runs: dict[Path, PlannedRun] = {}
    for chosen in itertools.product(*(options or [""] for options in varied.values())):
        train = (*filter(None, chosen), *common)
        here = train
        if sweep.launcher == "slurm":  # this machine need not have the device that the runs will have
            here = (*(word for word in train if _key(word) != "device"), "device=cpu")
        run = PlannedRun(load(here), train)
        runs.setdefault(run.folder, run)
    return sweep, list(runs.values())


def _key(word: str) -> str:
    return word.partition("=")[0]


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


def _for_nodes(words: list[str], sweep: SweepSettings) -> list[str]:
    """Device and preset as they would be chosen on a node, not on the machine that the sweep is typed on."""
    chosen = {"device": "cuda" if sweep.gpus else "cpu", "preset": "paper" if sweep.gpus else "small"}
    words = [word for word in words if word not in ("device=auto", "preset=auto")]
    return words + [f"{key}={value}" for key, value in chosen.items() if key not in map(_key, words)]


def _threads(sweep: SweepSettings) -> int:
    """For each run; 0 leaves torch's choice, as `make train` does."""
    if sweep.launcher == "slurm":
        return sweep.cpus
    return max(1, len(os.sched_getaffinity(0)) // sweep.jobs) if sweep.jobs > 1 else 0


class LocalProcess:
    """A run on this machine. In a session of its own, so that Ctrl-C reaches the sweep alone."""

    def __init__(self, run: PlannedRun, place: int) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        with open(run.log, "ab") as log:
            self._process = subprocess.Popen(
                run.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | _own_gpu(place),
                start_new_session=True,
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._process.kill()


def _own_gpu(place: int) -> dict[str, str]:
    """With several GPUs, runs take them in turn."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named is not None else [str(gpu) for gpu in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if len(gpus) > 1 else {}


def work_off(runs: Sequence[PlannedRun], unfinished: Sequence[PlannedRun], jobs: int, start: Start) -> list[PlannedRun]:
    """Runs the unfinished ones, at most `jobs` at a time; returns those that failed. Stopped, it stops them too."""
    waiting = list(unfinished)
    running: dict[int, tuple[PlannedRun, Handle]] = {}
    # The frame at which each run that is over counts in the bar.
    ended = {run.folder: run.settings.num_train_frames for run in runs if run not in waiting}
    failed: list[PlannedRun] = []
    progress = tqdm(
        total=sum(run.settings.num_train_frames for run in runs),
        initial=sum(ended.get(run.folder, run.frame()) for run in runs),
        unit="frame",
        dynamic_ncols=True,
        mininterval=PAUSE_S if sys.stderr.isatty() else 30,
        miniters=0,
    )
    try:
        while waiting or running:
            for place in range(jobs):
                if place not in running and waiting:
                    run = waiting.pop(0)
                    running[place] = (run, start(run, place))
            for place, (run, handle) in list(running.items()):
                if (code := handle.poll()) is not None:
                    del running[place]
                    ended[run.folder] = run.settings.num_train_frames if code == 0 else run.frame()
                    if code != 0:
                        failed.append(run)
                        progress.write(f"failed: {run.folder}: {_reason(run, code)} ({run.log})", file=sys.stderr)
            bad = f", {len(failed)} failed" if failed else ""
            progress.set_postfix_str(f"{len(ended) - len(failed)} of {len(runs)} runs done{bad}", refresh=False)
            progress.update(sum(ended.get(run.folder, run.frame()) for run in runs) - progress.n)
            if running:
                time.sleep(PAUSE_S)
    finally:
        _end([handle for _, handle in running.values()])
        progress.close()
    return failed


def _reason(run: PlannedRun, code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; is there enough memory?"
    return run.last_words().removeprefix("error: ")


def _end(handles: Sequence[Handle]) -> None:
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


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def main(words: list[str]) -> None:
    sweep, runs = plan(words)
    unfinished = [run for run in runs if not is_finished(run.settings)]
    if sweep.launcher == "local" or not unfinished:
        failed = work_off(runs, unfinished, sweep.jobs, LocalProcess)
    else:
        from mbrl.slurm import submit  # submitit is an extra

        jobs = submit(sweep, unfinished)
        failed = work_off(runs, unfinished, len(jobs), lambda run, place: jobs[run.folder])
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(str(run.folder) for run in failed)}; "
            "the same command tries them again, from their last checkpoints"
        )
    print(f"all {len(runs)} runs are finished; make compare weighs them against each other")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)  # a sweep that is ended from outside must not leave its runs behind
    command(main)

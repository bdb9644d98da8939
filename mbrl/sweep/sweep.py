"""Many runs with one command: `make sweep TASK=coffee-push,hammer AGENT=mbpo,drqv2 SEEDS=1-5 JOBS=2`.

    python -m mbrl.sweep task=coffee-push,hammer agent=mbpo,drqv2 seed=1-5 jobs=2 [key=value ...]

Each run is `python -m mbrl.train` in a process of its own, so that none can hurt another; its output goes to sweep.log
in its run folder. Finished runs are skipped, broken ones continue, a failed one is named at the end. Keys of the sweep
itself stand in configs/sweep.yaml; `mbrl/sweep/slurm.py` sends the runs to a cluster.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from envs import PIP
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.planned import dry_run, duration, pace
from mbrl.experiment.run import is_finished, saved_frame
from mbrl.experiment.settings import UserError
from mbrl.sweep.runs import PAUSE_S, Handle, PlannedRun, Start, SweepSettings, end, plan


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
    """Runs the unfinished ones, at most `jobs` at a time; returns those that failed, in order. Stopped, stops them."""
    waiting = list(unfinished)
    running: dict[int, tuple[PlannedRun, Handle]] = {}
    # The frame at which each run that is over counts in the bar.
    ended = {run.folder: run.settings.num_train_frames for run in runs if run not in waiting}
    failed: list[PlannedRun] = []
    progress = progress_bar(
        total=sum(run.settings.num_train_frames for run in runs),
        initial=sum(ended.get(run.folder, run.frame()) for run in runs),
        unit="frame",
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
        end([handle for _, handle in running.values()])
        progress.close()
    return [run for run in unfinished if run in failed]


def _reason(run: PlannedRun, code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; is there enough memory?"
    return run.last_words().removeprefix("error: ")


def _search(sweep: SweepSettings, overrides: Sequence[str]) -> None:
    own = {field.name for field in dataclasses.fields(SweepSettings)} - {"jobs", "launcher"}
    of_runs = [word for word in overrides if word.partition("=")[0] not in own]
    try:
        from mbrl.sweep.search import search
    except ModuleNotFoundError as error:
        raise UserError(f"search needs a package that is not installed ({error}): {PIP} install '.[sweep]'") from error
    if sweep.launcher == "local":
        search(sweep, of_runs, LocalProcess)
    else:
        from mbrl.sweep.slurm import submit

        search(sweep, of_runs, lambda run, place: submit(sweep, [run])[run.folder])


def planned(sweep: SweepSettings, runs: Sequence[PlannedRun], unfinished: Sequence[PlannedRun]) -> str:
    """What a sweep will do: a line in all, and one for each run that is not finished."""
    left = {run.folder: run.settings.num_train_frames - saved_frame(run.settings) for run in unfinished}
    seconds = [left[run.folder] * pace(run.settings)[0] for run in unfinished]
    known = f", about {duration(sum(seconds) / sweep.jobs)}" if seconds and all(seconds) else ""
    what = f"up to {sweep.trials} trials of {len(runs)} runs" if sweep.search else f"{len(runs)} runs"
    told = (
        f"{what}, {len(runs) - len(unfinished)} finished, {sweep.jobs} at a time: {sum(left.values()):,} frames{known}"
    )
    return "\n".join([told, *(f"  {folder}: {frames:,} frames" for folder, frames in left.items())])


def main(overrides: list[str]) -> None:
    overrides, dry = dry_run(overrides)
    sweep, runs = plan(overrides)
    if sweep.search and not dry:
        return _search(sweep, overrides)
    unfinished = [run for run in runs if not is_finished(run.settings)]
    if dry:
        print(planned(sweep, runs, unfinished))
        return
    if sweep.launcher == "local" or not unfinished:
        failed = work_off(runs, unfinished, sweep.jobs, LocalProcess)
    else:
        from mbrl.sweep.slurm import submit  # submitit is an extra

        jobs = submit(sweep, unfinished)
        failed = work_off(runs, unfinished, len(jobs), lambda run, place: jobs[run.folder])
    if failed:
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(str(run.folder) for run in failed)}; "
            "the same command tries them again, from their last checkpoints"
        )
    print(f"all {len(runs)} runs are finished; make compare weighs them against each other")

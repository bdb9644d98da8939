"""A sweep on a Slurm cluster: one array of jobs, submitted through submitit, which is an extra of this project.

A run that reaches its time limit is put back into the queue by submitit and continues from its last checkpoint. The
machine that the sweep was typed on only watches, and Ctrl-C there cancels the jobs; the run folders must lie where all
machines see them. With the launcher `submitit` the same path runs on this machine alone, to try it out.
"""

import dataclasses
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs import PIP
from mbrl.experiment.settings import UserError
from mbrl.sweep.runs import PlannedRun, SweepSettings

MOST_RESTARTS = 100  # after a time limit; submitit would stop at 3


@dataclasses.dataclass(frozen=True)
class Train:
    """What a job does. Pickled by submitit, so it lives in a module that every machine can import."""

    command: tuple[str, ...]
    log: Path

    def __call__(self) -> int:
        """The exit code of the run."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            return subprocess.run(self.command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode

    def checkpoint(self) -> Any:
        """Called by submitit before the time limit: the same again, which continues the run."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Job:
    """A submitted run, as `mbrl/sweep/sweep.py` looks at it."""

    def __init__(self, job: Any) -> None:
        self._job = job

    def poll(self) -> int | None:
        if not self._job.done():
            return None
        failure = self._job.exception()
        return 1 if failure is not None else int(self._job.result())

    def stop(self) -> None:
        self._job.cancel()

    def kill(self) -> None:
        self._job.cancel()


def submit(sweep: SweepSettings, runs: Sequence[PlannedRun]) -> dict[Path, Job]:
    """One array of jobs; which is which by run folder. Raises UserError without submitit or without Slurm."""
    try:
        import submitit
    except ImportError as error:
        raise UserError(f"launcher=slurm needs the package: {PIP} install submitit, or leave launcher=local") from error
    folder = Path(runs[0].settings.run_root) / "slurm" / "%A"
    try:
        cluster = "slurm" if sweep.launcher == "slurm" else "local"
        executor = submitit.AutoExecutor(folder, cluster=cluster, slurm_max_num_timeout=MOST_RESTARTS)
    except RuntimeError as error:
        raise UserError("launcher=slurm: there is no Slurm here; type it where `srun` is, or launcher=local") from error
    executor.update_parameters(
        name="mbrl",
        timeout_min=math.ceil(60 * sweep.hours),
        cpus_per_task=sweep.cpus,
        gpus_per_node=sweep.gpus,
        mem_gb=sweep.memory_gb,
        slurm_array_parallelism=sweep.jobs,
        **({"slurm_partition": sweep.partition} if sweep.partition else {}),
    )
    with executor.batch():
        jobs = [executor.submit(Train(tuple(run.command), run.log)) for run in runs]
    return {run.folder: Job(job) for run, job in zip(runs, jobs, strict=True)}

"""Sweeps: what is planned, what runs when, what a crash or Ctrl-C leaves, and the Slurm path without a Slurm."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Command, tiny

from mbrl.experiment.run import lock_folder
from mbrl.sweep import slurm, sweep
from mbrl.sweep.runs import PlannedRun, plan
from mbrl.sweep.sweep import LocalProcess, main, work_off

COMMON = ("preset=smoke", "device=cpu")


def folders(*overrides: str) -> list[str]:
    return ["/".join(run.folder.parts[1:]) for run in plan([*COMMON, *overrides])[1]]


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_lists_are_multiplied_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no run is that a smoke run would give way to
    assert folders("task=coffee_push,hammer", "agent=mbpo,drqv2", "seed=1-2") == [
        f"{task}/{agent}/{seed}" for seed in (1, 2) for task in ("coffee-push", "hammer") for agent in ("mbpo", "drqv2")
    ]
    assert folders("task=hammer", "seed=2,4-5,2", "variant=x") == [f"hammer/mbpo-x/{seed}" for seed in (2, 4, 5)]
    assert folders() == ["coffee-push/mbpo/1"]


def test_every_run_gets_all_other_overrides() -> None:
    overrides = ["task=hammer", "seed=1-2", *COMMON, "drqv2.stddev_schedule=linear(1.0,0.1,500)", "variant="]
    _, [run, _] = plan(overrides)
    assert run.overrides == ("seed=1", "task=hammer", *overrides[2:])
    assert run.settings.drqv2.stddev_schedule == "linear(1.0,0.1,500)"


def test_threads_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert [plan([*COMMON, f"jobs={jobs}"])[1][0].settings.threads for jobs in (1, 2, 5, 20)] == [0, 6, 2, 1]
    assert plan([*COMMON, "jobs=2", "threads=3"])[1][0].settings.threads == 3


def test_gpus_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [sweep._own_gpu(place)["CUDA_VISIBLE_DEVICES"] for place in (0, 1, 2)] == ["4", "7", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    assert sweep._own_gpu(1) == {}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=1-", "seed=1-: write seeds as 1-5"),
        ("seed=5-1", "names no seed"),
        ("task=hammer,hamer", "unknown task 'hamer'"),
        ("agent=mbpo,drq", "unknown agent 'drq'"),
        ("job=2", "unknown key job"),
        ("jobs=0", "jobs=0 is out of range"),
        ("launcher=pbs", "it must be one of local, slurm, submitit"),
        ("batch_size=32,64", "one value at a time"),
    ],
)
def test_mistakes_are_found_before_anything_runs(typed: Command, run_root: Path, override: str, said: str) -> None:
    code, _, error = typed(main, *COMMON, f"run_root={run_root}", override)
    assert code == 2
    assert said in error
    assert not run_root.exists()


# -- what runs, with stand-ins for the training ------------------------------------------------------------------------


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch, run_root: Path) -> Path:
    """Runs execute the Python code that lies in their folder as `code.py`; returns the folder of seed 1."""
    line = property(lambda self: [sys.executable, "-I", str(self.folder / "code.py")])
    monkeypatch.setattr(PlannedRun, "command", line)
    monkeypatch.setattr(sweep, "PAUSE_S", 0.02)
    for seed in (1, 2, 3):
        (run_root / "hammer" / "mbpo" / str(seed)).mkdir(parents=True)
    return run_root / "hammer" / "mbpo" / "1"


def planned(root: Path, *overrides: str) -> list[PlannedRun]:
    return plan([*COMMON, f"run_root={root}", "task=hammer", "seed=1-3", *overrides])[1]


def test_one_that_dies_hurts_no_other(standing_in: Path, typed: Command) -> None:
    root = standing_in.parents[2]
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    for seed, code in ((1, crash), (2, "print('error: no such thing'); raise SystemExit(2)"), (3, "print('fine')")):
        (standing_in.parent / str(seed) / "code.py").write_text(code)
    code, out, error = typed(main, *COMMON, f"run_root={root}", "task=hammer", "seed=1-3", "jobs=2")
    assert code == 2
    assert out == ""
    assert error.splitlines()[-1].startswith(f"error: 2 of 3 runs failed: {standing_in}, {standing_in.parent / '2'};")
    assert (standing_in.parent / "3" / "sweep.log").read_text() == "fine\n"
    runs = planned(root)
    assert sweep._reason(runs[0], -signal.SIGKILL) == "killed by SIGKILL; is there enough memory?"
    assert sweep._reason(runs[1], 2) == "no such thing"


def test_never_more_than_jobs_at_a_time(standing_in: Path) -> None:
    """Each run writes when it began and when it ended."""
    spans = "import time; print(time.monotonic()); time.sleep(0.2); print(time.monotonic())"
    runs = planned(standing_in.parents[2])
    for run in runs:
        (run.folder / "code.py").write_text(spans)
    assert work_off(runs, runs, 2, LocalProcess) == []
    times = [[float(line) for line in run.log.read_text().split()] for run in runs]
    assert times[1][0] < times[0][1]  # the first two together
    assert times[2][0] > min(times[0][1], times[1][1])  # the third when one of them was over


def test_a_stop_reaches_the_runs(standing_in: Path) -> None:
    """Ctrl-C while two of three run: they get the chance to end in order; what was waiting never starts."""
    polite = "import time\nprint('on', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('bye')"
    runs = planned(standing_in.parents[2])
    for run in runs:
        (run.folder / "code.py").write_text(f"import signal\nsignal.signal(2, signal.default_int_handler)\n{polite}")
    started: list[LocalProcess] = []

    class Interrupted(LocalProcess):
        pressed = False

        def poll(self) -> int | None:
            if not Interrupted.pressed and len(started) == 2 and all("on" in run.log.read_text() for run in runs[:2]):
                Interrupted.pressed = True
                raise KeyboardInterrupt
            return super().poll()

    def start(run: PlannedRun, place: int) -> LocalProcess:
        started.append(Interrupted(run, place))
        return started[-1]

    with pytest.raises(KeyboardInterrupt):
        work_off(runs, runs, 2, start)
    assert [process.poll() for process in started] == [0, 0]
    assert [run.log.read_text() for run in runs[:2]] == ["on\nbye\n"] * 2
    assert not runs[2].log.exists()


def test_the_bar_reads_the_run_folders(standing_in: Path) -> None:
    run = planned(standing_in.parents[2])[0]
    assert run.frame() == 0
    lines = [json.dumps({"frame": frame, "wall_time_s": 1.0, "time/act_s": 1.0}) for frame in (100, 240)]
    path = run.folder / "metrics.jsonl"
    path.write_text("\n".join(lines) + '\n{"frame": 99')  # the last one still being written
    assert run.frame() == 240
    path.write_text('{"frame": 5000, "wall_time_s": 1.0}\n')
    assert run.frame() == run.settings.num_train_frames


# -- the real thing ----------------------------------------------------------------------------------------------------


def test_a_sweep_with_a_failing_run_and_again(typed: Command, run_root: Path) -> None:
    """Seed 3 cannot start, because its folder is in use. The same command then runs it alone."""
    overrides = tiny(run_root, "agent=drqv2", "seed=1-3", "num_train_frames=80", "jobs=2")
    folder = run_root / "toy" / "reach" / "drqv2"
    (folder / "3").mkdir(parents=True)
    with lock_folder(folder / "3"):
        code, out, error = typed(main, *overrides)
    assert (code, out) == (2, "")
    assert error.startswith(f"error: 1 of 3 runs failed: {folder / '3'};")
    assert f"error: another process is training in {folder / '3'}" in (folder / "3" / "sweep.log").read_text()
    before = {path: path.stat().st_mtime_ns for seed in "12" for path in (folder / seed).rglob("*")}
    code, out, error = typed(main, *overrides)
    assert (code, error) == (0, "")
    assert out.startswith("all 3 runs are finished")
    assert {path: path.stat().st_mtime_ns for seed in "12" for path in (folder / seed).rglob("*")} == before
    assert all((folder / seed / "eval.csv").read_text().splitlines()[-1].startswith("80,") for seed in "123")
    assert typed(main, *overrides)[1].startswith("all 3 runs are finished")


# -- Slurm -------------------------------------------------------------------------------------------------------------


STAND_IN = """
import sys
from mbrl.sweep import sweep
from mbrl.experiment.command import command
sweep.PlannedRun.command = property(lambda run: [sys.executable, "-I", str(run.folder / "code.py")])
command(sweep.main)
"""


def test_the_slurm_path_on_one_machine(standing_in: Path, project_root: Path) -> None:
    """submitit's local executor: the jobs are pickled, run elsewhere, and their exit codes come back.

    In a process of its own, for submitit sets up logging and signals for the process that it is imported into.
    """
    root = standing_in.parents[2]
    for seed, code in ((1, "print('fine')"), (2, "raise SystemExit('error: broken')")):
        (standing_in.parent / str(seed) / "code.py").write_text(code)
    overrides = [*COMMON, f"run_root={root}", "task=hammer", "launcher=submitit", "gpus=0", "seed=1-2"]
    line = [sys.executable, "-c", STAND_IN, *overrides]
    done = subprocess.run(line, cwd=project_root, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "1 of 2 runs failed" in done.stderr
    assert (standing_in.parent / "1" / "sweep.log").read_text() == "fine\n"
    assert (standing_in.parent / "2" / "sweep.log").read_text() == "error: broken\n"


def test_the_batch_script(run_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Slurm is asked for, as it would arrive: `sbatch` keeps the script and says a number."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in (("srun", "exit 0"), ("sbatch", f'cp "$1" {tmp_path}/batch.sh; echo Submitted batch job 77')):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    asked, runs = plan(
        [f"run_root={run_root}", "task=hammer", "seed=1-3", "launcher=slurm", "jobs=2", "hours=1.5", "partition=gpu"]
    )
    jobs = slurm.submit(asked, runs)
    assert list(jobs) == [run.folder for run in runs]
    script = (tmp_path / "batch.sh").read_text()
    asks = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, re.MULTILINE))
    assert asks["array"] == "0-2%2"
    assert (asks["time"], asks["partition"], asks["cpus-per-task"], asks["gpus-per-node"]) == ("90", "gpu", "4", "1")
    assert asks["mem"] == "32GB"
    assert "submitit.core._submit" in script
    # On the login node there is no GPU; the runs still know that they will have one, and their share of the threads.
    overrides = ("seed=1", "task=hammer", f"run_root={run_root}", "device=cuda", "preset=paper", "threads=4")
    assert runs[0].overrides == overrides
    assert slurm.Train(("true",), run_root / "log").checkpoint().function == slurm.Train(("true",), run_root / "log")


def test_without_slurm_or_submitit_one_line_says_so(
    typed: Command, run_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(run_root))
    overrides = [f"run_root={run_root}", "launcher=slurm"]
    code, _, error = typed(main, *overrides)
    assert (code, error) == (
        2,
        "error: launcher=slurm: there is no Slurm here; type it where `srun` is, or launcher=local",
    )
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, _, error = typed(main, *overrides)
    assert code == 2
    assert "pip install submitit" in error

"""Searches: what may be written, what a trial is worth, which are stopped, and one that is killed and continued."""

import csv
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from tiny import Command, tiny

from mbrl.sweep import search, sweep
from mbrl.sweep.runs import PlannedRun, SweepSettings, plan

HEADER = "frame,episode_return,success_rate,episodes,wall_time_s\n"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("", "search names no key"),
        ("drqv2.lr=log(0,1)", "is not understood"),
        ("drqv2.lr=log(1e-3,1e-5)", "search=drqv2.lr=log(1e-3,1e-5) is not understood"),
        ("nstep=int(3,3)", "there is nothing between 3 and 3"),
        ("nstep=int(1.5,3)", "is not understood"),
        ("nstep=3", "write key=log(1e-5,1e-3)"),
        ("nstep=1|1", "every choice needs a value of its own"),
        ("nstep=1|2 nstep=3|4", "search names nstep twice"),
        ("nsteps=1|2", "unknown key nsteps"),
        ("nstep=int(0,3)", "nstep=0"),
        ("discount=range(0.5,1.5)", "discount=1.5"),
        ("variant=a|b", "give search_name in its place"),
        ("nstep=1|x|3", "nstep=x"),
        ("drqv2.encoder=drqv2|bogus|quarter", "bogus"),
        ("trials=1|2", "trials=...: it is no key that a search can choose"),
    ],
)
def test_mistakes_are_found_before_anything_runs(typed: Command, run_root: Path, asked: str, said: str) -> None:
    code, _, error = typed(sweep.main, *tiny(run_root, "agent=drqv2"), f"search= {asked}")
    assert code == 2
    assert said in error
    assert not run_root.exists() or not list(run_root.iterdir())


def test_without_optuna_one_line_says_so(typed: Command, run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mbrl.sweep.search")
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, error = typed(sweep.main, *tiny(run_root, "agent=drqv2"), "search=nstep=1|2")
    assert code == 2
    assert "pip install '.[sweep]'" in error


class Played:
    """A run that writes one evaluation whenever it is looked at, three in all."""

    def __init__(self, run: PlannedRun, success: float) -> None:
        self.path, self.success, self.rows = run.folder / "eval.csv", success, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(HEADER)

    def poll(self) -> int | None:
        if self.rows == 3:
            return 0
        self.rows += 1
        with open(self.path, "a") as file:
            file.write(f"{self.rows * 10},1.0,{self.success},2,1.0\n")
        return None

    def stop(self) -> None:
        self.rows = 3

    def kill(self) -> None:
        raise AssertionError("it has ended")


def begun(
    run_root: Path, trials: int, *overrides: str, asked: str = "nstep=1|2|3"
) -> tuple[search.Search, list[Played]]:
    """A search of two runs a trial, in which every trial but the first five fails at its task."""
    words = tiny(run_root, "agent=drqv2", "seed=1-2", *overrides)
    settings: SweepSettings = plan([*words, f"search={asked}", f"trials={trials}", "jobs=2"])[0]
    played: list[Played] = []

    def start(run: PlannedRun, place: int) -> Played:
        played.append(Played(run, float(len(played) < 10)))
        return played[-1]

    return search.Search(settings, words, start), played


def test_a_trial_that_falls_behind_is_stopped(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PAUSE_S", 0)
    found, played = begun(run_root, 7)
    found.work_off()
    states = [trial.state for trial in found.study.get_trials()]
    assert states == [optuna.trial.TrialState.COMPLETE] * 5 + [optuna.trial.TrialState.PRUNED] * 2
    assert found.study.best_value == 1
    assert "7 trials, 2 stopped early, 0 failed" in found.report()
    assert len(played) == 14
    assert all((run_root / f"toy/reach/drqv2-search-{i}/{seed}/eval.csv").exists() for i in range(7) for seed in (1, 2))


def test_a_search_knows_itself_again(run_root: Path, typed: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PAUSE_S", 0)
    first, _ = begun(run_root, 1)
    first.work_off()
    with pytest.raises(search.UserError, match="another process"):
        begun(run_root, 2)
    first._lock.close()
    with pytest.raises(search.UserError, match=r"holds another search \(search was nstep=1\|2\|3\)"):
        begun(run_root, 2, asked="nstep=1|2")
    with pytest.raises(search.UserError, match=r"holds another search \(runs was"):
        begun(run_root, 2, "batch_size=5")
    second, played = begun(run_root, 2)
    second.work_off()
    assert len(second.study.get_trials()) == 2
    assert len(played) == 2


def told(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(statement)


HARMS: dict[str, Callable[[Path], object]] = {
    "no database": lambda path: path.write_bytes(b"x" * 5000),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "other columns": lambda path: told(path, "ALTER TABLE trials RENAME COLUMN state TO x"),
    "another shape": lambda path: told(path, "UPDATE study_user_attributes SET value_json = '[1]'"),
    "no JSON": lambda path: told(path, "UPDATE study_user_attributes SET value_json = '{'"),
    "nested deeply": lambda path: told(path, f"UPDATE study_user_attributes SET value_json = '{'[' * 100_000}'"),
    "another direction": lambda path: told(path, "UPDATE study_directions SET direction = 'MINIMIZE'"),
    "no value": lambda path: told(path, "DELETE FROM trial_values"),
    "no parameters": lambda path: told(path, "DELETE FROM trial_params"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def test_a_damaged_study_is_refused_in_one_line_and_let_go(run_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PAUSE_S", 0)
    first, _ = begun(run_root, 1)
    first.work_off()
    first._lock.close()
    path = first.folder / search.STUDY
    whole = path.read_bytes()
    for name, harm in HARMS.items():  # were the lock not let go, it would be "another process" from the second on
        path.write_bytes(whole)
        harm(path)
        with pytest.raises(search.UserError, match=r"study.db cannot be read") as caught:
            begun(run_root, 2)
        assert "\n" not in str(caught.value), name
        assert len(str(caught.value)) < 400, name


def test_a_failed_run_fails_its_trial(run_root: Path, typed: Command) -> None:
    """Its demonstrations are nowhere, which only the run finds out."""
    words = tiny(run_root, "agent=drqv2", "num_train_frames=80", "eval_every_frames=80")
    code, _, error = typed(sweep.main, *words, "search=demonstrations=/nowhere|/neither", "trials=1")
    assert code == 2
    assert "1 runs failed" in error
    [row] = csv.DictReader((run_root / "searches/search/trials.csv").open())
    assert (row["trial"], row["state"], row["success_rate"]) == ("0", "fail", "")


def test_killed_and_continued_it_ends_with_as_many_trials_as_asked(
    run_root: Path, typed: Command, project_root: Path
) -> None:
    words = tiny(run_root, "agent=drqv2", "num_train_frames=80", "eval_every_frames=40")
    words += ["search=drqv2.lr=log(1e-5,1e-3) nstep=int(1,3)", "trials=6", "jobs=2", "pruning=false"]
    line = [sys.executable, "-m", "mbrl.sweep", *words]
    with subprocess.Popen(line, cwd=project_root, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not list(run_root.glob("toy/reach/drqv2-search-2/1/eval.csv")):  # two have ended, or one and part of two
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
    code, out, error = typed(sweep.main, *words)
    assert (code, error) == (0, "")
    assert out.startswith("6 trials, 0 stopped early, 0 failed")
    assert "best: trial" in out
    rows = list(csv.DictReader((run_root / "searches/search/trials.csv").open()))
    assert sorted(int(row["trial"]) for row in rows) == list(range(6))
    rates = [float(row["success_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert len({row["drqv2.lr"] for row in rows}) == 6
    assert sorted(path.name for path in (run_root / "toy/reach").iterdir()) == [f"drqv2-search-{i}" for i in range(6)]
    before = [path.stat().st_mtime_ns for path in sorted(run_root.glob("toy/reach/*/1/eval.csv"))]
    assert typed(sweep.main, *words)[1] == out
    assert [path.stat().st_mtime_ns for path in sorted(run_root.glob("toy/reach/*/1/eval.csv"))] == before

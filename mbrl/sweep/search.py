"""A search for better values of some keys, by Optuna: `make sweep TASK=hammer SEARCH="drqv2.lr=log(1e-5,1e-3)"`.

A trial is a method with values of its own; its runs are those that the rest of the command means (tasks, agents,
seeds), each in the folder of its variant, `<search_name>-<number>`. What a trial is worth is `objective`, a column of
eval.csv, averaged over its runs and their evaluations; one that is worse than the median of those before it is stopped.

All that is known of the trials is in `<run_root>/searches/<search_name>/`: `study.db`, and at the end `trials.csv`. The
same command again continues a search that was cut off: trials that were under way go on, and none counts twice.
"""

import csv
import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import OptunaError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from mbrl.compare.results import NothingThere, evaluations
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.logger import EVAL
from mbrl.experiment.run import is_finished, lock_folder
from mbrl.experiment.settings import UserError
from mbrl.sweep.runs import PAUSE_S, Handle, PlannedRun, Start, SweepSettings, end, plan
from world_model.files import READ_ERRORS, reason

FORMS = "write key=log(1e-5,1e-3), key=range(0,1), key=int(1,4) or key=a|b|c"
STARTUP_TRIALS = 5  # before any is stopped
STUDY = "study.db"
# What Optuna raises where the file of a study is damaged.
DAMAGED: tuple[type[Exception], ...] = (SQLAlchemyError, OptunaError, *READ_ERRORS)
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# A trial's runs differ in these, or the search itself is made of them.
NOT_SEARCHED = {"seed", "run_root", *(field.name for field in dataclasses.fields(SweepSettings))}

Space = dict[str, BaseDistribution]


def parse(text: str) -> Space:
    """What is searched: `key=log(low,high)`, `range(low,high)`, `int(low,high)` or `a|b|c`, with spaces between.

    Raises UserError: something is written otherwise, or there is nothing between the ends.
    """
    space: Space = {}
    for word in text.split():
        key, _, asked = word.partition("=")
        if key in space:
            raise UserError(f"search names {key} twice")
        space[key] = _distribution(word, asked)
    if not space:
        raise UserError(f"search names no key: {FORMS}")
    return space


def _distribution(word: str, asked: str) -> BaseDistribution:
    if "|" in asked:
        choices = asked.split("|")
        if "" in choices or len(set(choices)) < len(choices):
            raise UserError(f"search={word}: every choice needs a value of its own")
        return CategoricalDistribution(choices)
    match = re.fullmatch(r"(log|range|int)\(([^,()]+),([^,()]+)\)", asked)
    try:
        if match is None:
            raise ValueError
        kind, low, high = match.groups()
        between: FloatDistribution | IntDistribution
        if kind == "int":
            between = IntDistribution(int(low), int(high))
        else:
            between = FloatDistribution(float(low), float(high), log=kind == "log")
    except ValueError as error:
        why = f" ({error})" if match is not None else ""
        raise UserError(f"search={word} is not understood{why}: {FORMS}") from error
    if not between.low < between.high:
        raise UserError(f"search={word}: there is nothing between {between.low} and {between.high}")
    return between


class Active(NamedTuple):
    """A trial under way."""

    trial: Trial
    runs: list[PlannedRun]
    told: set[int]  # the evaluations, counted from 0, that Optuna knows of

    def worth(self, objective: str) -> list[float]:
        """After each evaluation that all its runs have: the mean over them and over the evaluations so far."""
        columns = [_column(run, objective) for run in self.runs]
        means = [[sum(column[: i + 1]) / (i + 1) for i in range(len(column))] for column in columns]
        return [sum(step) / len(step) for step in zip(*means, strict=False)]


def _column(run: PlannedRun, objective: str) -> list[float]:
    try:
        return [float(value) for value in evaluations(run.folder / EVAL, lambda note: None)[objective]]
    except NothingThere:
        return []


class Search:
    """Asks for trials, runs them, tells what they were worth."""

    def __init__(self, sweep: SweepSettings, overrides: Sequence[str], start: Start) -> None:
        self.sweep, self.overrides, self.start = sweep, list(overrides), start
        self.space = parse(sweep.search)
        if "variant" in {word.partition("=")[0] for word in [*overrides, *sweep.search.split()]}:
            raise UserError("variant names the trials of a search: give search_name in its place")
        if unfit := self.space.keys() & NOT_SEARCHED:
            raise UserError(f"search={min(unfit)}=...: it is no key that a search can choose")
        extremes = {key: [*map(str, _extremes(kind))] for key, kind in self.space.items()}
        for i in range(max(map(len, extremes.values()))):
            self.runs_of("ends", {key: values[min(i, len(values) - 1)] for key, values in extremes.items()})
        self.folder = Path(plan(self.overrides)[1][0].settings.run_root) / "searches" / sweep.search_name
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.folder)
        try:
            self._begin()
        except BaseException:
            self._lock.close()  # at once, not when the error is forgotten
            raise
        self.running: dict[int, tuple[Active, PlannedRun, Handle]] = {}
        self.failed: list[PlannedRun] = []

    def _begin(self) -> None:
        """Take up what the folder knows. Raises UserError: it is damaged, or it is another search."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        path, pruners = self.folder.absolute() / STUDY, optuna.pruners
        pruner = pruners.MedianPruner(STARTUP_TRIALS) if self.sweep.pruning else pruners.NopPruner()
        try:
            self.study = optuna.create_study(
                storage=f"sqlite:///{path}",
                study_name=self.sweep.search_name,
                direction="maximize",
                load_if_exists=True,
                pruner=pruner,
            )
            if self.study.direction != StudyDirection.MAXIMIZE:
                raise ValueError("it does not look for the largest")
            self._check_same_search()
            # Begun with one seed, a search that goes on would draw the same again.
            self.study.sampler = optuna.samplers.TPESampler(seed=self._asked(), constant_liar=True)
            self._check_trials()
            cut_off = self.trials(TrialState.RUNNING)
        except UserError:
            raise
        except DAMAGED as error:
            raise UserError(f"{path} cannot be read ({reason(error)}): remove {self.folder} to start over") from error
        self.active = [self._active(Trial(self.study, trial._trial_id), trial.intermediate_values) for trial in cut_off]
        runs = ((active, run) for active in self.active for run in active.runs)
        self.waiting = [(active, run) for active, run in runs if not is_finished(run.settings)]

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def runs_of(self, number: Any, values: dict[str, Any]) -> list[PlannedRun]:
        """Those of one trial. Raises UserError: a run cannot have these values."""
        own = [f"variant={self.sweep.search_name}-{number}", *(f"{key}={value}" for key, value in values.items())]
        return plan([*self.overrides, *own])[1]

    def work_off(self) -> None:
        """Until `trials` trials have ended. Stopped, it stops their runs, and they stay under way."""
        with progress_bar(total=self.sweep.trials, unit="trial") as progress:
            try:
                while self.running or self.waiting or self.active or self._asked() < self.sweep.trials:
                    self._start()
                    for place, (_, run, handle) in list(self.running.items()):
                        if (code := handle.poll()) is not None:
                            del self.running[place]
                            self.failed += [run] if code else []
                    for active in list(self.active):
                        self._look_at(active)
                    progress.n = len(self.trials(*ENDED))
                    progress.set_postfix_str(self._best())
                    if self.running or self.waiting:
                        time.sleep(PAUSE_S)
            finally:
                end([handle for _, _, handle in self.running.values()])

    def _start(self) -> None:
        """Fill the free places: with what waits, or else with a new trial."""
        for place in range(self.sweep.jobs):
            if place in self.running:
                continue
            if not self.waiting and self._asked() < self.sweep.trials:
                active = self._active(self.study.ask(self.space))
                self.active.append(active)
                self.waiting += [(active, run) for run in active.runs if not is_finished(run.settings)]
            if (free := next((entry for entry in self.waiting if not _in_use(entry[1].folder)), None)) is not None:
                self.waiting.remove(free)
                active, run = free
                if not is_finished(run.settings):
                    self.running[place] = (active, run, self.start(run, place))

    def _look_at(self, active: Active) -> None:
        """Report what a trial is worth so far; tell it if it has ended, or stop it if it is not worth going on."""
        pending = any(other is active for other, *_ in [*self.running.values(), *self.waiting])
        worth = active.worth(self.sweep.objective)
        if not pending and any(run in self.failed for run in active.runs):
            return self._tell(active, None, TrialState.FAIL)
        news = [step for step in range(len(worth)) if step not in active.told]
        for step in news:
            active.trial.report(worth[step], step)
        active.told.update(news)
        if not pending:
            return self._tell(active, worth[-1], TrialState.COMPLETE)
        if news and active.trial.should_prune():
            places = [place for place, (other, *_) in self.running.items() if other is active]
            end([self.running.pop(place)[2] for place in places])
            self.waiting = [(other, run) for other, run in self.waiting if other is not active]
            self._tell(active, None, TrialState.PRUNED)

    def _tell(self, active: Active, value: float | None, state: TrialState) -> None:
        self.study.tell(active.trial, value, state=state)
        self.active.remove(active)

    def _active(self, trial: Trial, told: Iterable[int] = ()) -> Active:
        return Active(trial, self.runs_of(trial.number, trial.params), set(told))

    def _asked(self) -> int:
        return len(self.study.get_trials(deepcopy=False))

    def _best(self) -> str:
        complete = self.trials(TrialState.COMPLETE)
        return f"best {self.study.best_value:.3g} (trial {self.study.best_trial.number})" if complete else ""

    def _check_same_search(self) -> None:
        """Raises UserError: what was searched here before was something else."""
        bar = {"jobs", "threads", "trials", "launcher"}
        words = sorted(word for word in self.overrides if word.partition("=")[0] not in bar)
        now = {"search": sorted(self.sweep.search.split()), "objective": self.sweep.objective, "runs": words}
        before = self.study.user_attrs.get("asked")
        if before is None:
            self.study.set_user_attr("asked", now)
        elif changed := [key for key in now if json.dumps(before[key]) != json.dumps(now[key])]:
            raise UserError(
                f"{self.folder} holds another search ({changed[0]} was {_shown(before[changed[0]])}): "
                "choose another search_name"
            )

    def _check_trials(self) -> None:
        """Raises ValueError: one is complete without its result, or without what was searched."""
        for trial in self.trials(TrialState.COMPLETE):
            if trial.value is None or (self.space.keys() - trial.params.keys()):
                raise ValueError(f"trial {trial.number} is complete without its values")

    def report(self) -> str:
        """Writes trials.csv, and says which trial is best and how it is made again."""
        trials = self.trials(*ENDED)
        worth = {trial.number: trial.value or 0.0 for trial in trials if trial.state == TrialState.COMPLETE}
        order = sorted(trials, key=lambda trial: -worth.get(trial.number, -math.inf))
        path = self.folder / "trials.csv"
        partial = path.with_suffix(".tmp")
        with open(partial, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["trial", "state", self.sweep.objective, *self.space])
            for trial in order:
                values = [trial.params.get(key, "") for key in self.space]
                writer.writerow([trial.number, trial.state.name.lower(), worth.get(trial.number, ""), *values])
        os.replace(partial, path)
        ended = {state: sum(trial.state == state for trial in trials) for state in ENDED}
        pruned, failed = ended[TrialState.PRUNED], ended[TrialState.FAIL]
        told = f"{len(trials)} trials, {pruned} stopped early, {failed} failed: {path}"
        if not ended[TrialState.COMPLETE]:
            return told
        best = order[0]
        words = " ".join(f"{key}={best.params[key]}" for key in self.space)
        return f"{told}\nbest: trial {best.number}, {self.sweep.objective} {best.value:.4g}: {words}"


def _in_use(folder: Path) -> bool:
    """Whether a run goes on there: of a search that was killed, its processes live on."""
    try:
        if folder.is_dir():
            lock_folder(folder).close()
    except UserError:
        return True
    return False


def _extremes(kind: BaseDistribution) -> tuple[Any, ...]:
    """Values of which each must be usable, that all between them are: both ends, or every choice."""
    if isinstance(kind, CategoricalDistribution):
        return tuple(kind.choices)
    assert isinstance(kind, FloatDistribution | IntDistribution)
    return kind.low, kind.high


def _shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


def search(sweep: SweepSettings, overrides: Sequence[str], start: Start) -> None:
    """Search, and say what was found. Raises UserError: the search cannot begin, or runs failed."""
    found = Search(sweep, overrides, start)
    found.work_off()
    print(found.report())
    if found.failed:
        names = ", ".join(str(run.folder) for run in found.failed)
        raise UserError(f"{len(found.failed)} runs failed: {names}; their trials count as failed")

"""Learning curves of many runs as one comparison: aligned by task, aggregated over seeds and tasks.

    comparison = compare(curves, note)
    comparison.over_frames(task)       # {method: Line}; task None is all tasks together
    comparison.rows()                  # the numbers of the table

Within a task all methods are compared at the same frame: the last that every run of ours has reached. The numbers over
all tasks are formed on the tasks that every method of ours has; other people's results join where they reach as far.
Statistics are those of `mbrl/compare/stats.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mbrl.compare.results import Curve, given
from mbrl.compare.stats import (
    MIN_RUNS,
    REPS,
    Array,
    Estimate,
    area,
    bootstrap,
    improvement,
    iqm,
    profile,
    smallest_p,
    time_to,
)
from mbrl.experiment.settings import UserError

ALL = "all tasks"
ENOUGH_SEEDS = 5
NEAR = 0.95  # of the way: other people's results that come this far are at the end
POINTS = 50  # of a curve whose runs were not evaluated at the same points
TAUS = np.linspace(0, 1, 101)
THRESHOLDS = (0.5, 0.8)
MANY_METHODS = 5  # from here on each is only weighed against the best

Note = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one task: R runs at the same P frames."""

    curves: tuple[Curve, ...]
    frames: Array  # (P,)
    scores: Array  # (R, P)
    minutes: Array | None  # (R, P)

    @property
    def episodes(self) -> int:
        """Behind one point, all seeds together; 0 where nobody says."""
        return sum(curve.episodes for curve in self.curves)

    @property
    def areas(self) -> Array:
        """(R,)"""
        return area(self.frames, self.scores)


class Line(NamedTuple):
    x: Array  # (P,)
    estimate: Estimate  # (P,) each


class Improvement(NamedTuple):
    """How probable it is that a run of one method does better than a run of another."""

    better: str
    worse: str
    at_the_end: Estimate  # in its last score
    on_the_way: Estimate  # in the area under its curve: who learns faster
    smallest_p: float  # that so many runs can reach: where they cannot carry a verdict, neither has an interval


class Row(NamedTuple):
    """A line of the table; times are medians over runs, infinite where half of them never got there."""

    task: str  # or ALL
    method: str
    seeds: str
    episodes: int
    frames: float  # where the score was taken; NaN where the tasks differ
    score: Estimate
    area: Estimate
    frames_to: tuple[float, ...]  # one for each of THRESHOLDS
    minutes_to: tuple[float, ...]  # NaN where no time is known
    reached: tuple[str, ...]  # "4/5"
    protocol: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    tasks: tuple[str, ...]
    methods: tuple[str, ...]  # ours first
    cells: dict[tuple[str, str], Cell]
    ends: dict[str, float]  # frame at which a task is compared
    shared: tuple[str, ...]  # tasks behind the numbers over all tasks
    ranked: tuple[str, ...]  # methods that have them all, the best first
    reps: int = REPS

    def protocol(self, method: str) -> str:
        return next(iter(self.by_task(method).values())).curves[0].protocol

    def is_ours(self, method: str) -> bool:
        return next(iter(self.by_task(method).values())).curves[0].ours

    @property
    def same_budget(self) -> bool:
        """Whether frames mean the same on all shared tasks; otherwise it is the share of each task's frames."""
        return len({self.ends[task] for task in self.shared}) <= 1

    def over_frames(self, task: str | None) -> dict[str, Line]:
        """IQM against frames, or for all tasks of unequal budgets against the share of the budget."""
        if task is not None:
            return {
                method: Line(cell.frames, bootstrap(iqm, [cell.scores], self.reps))
                for method, cell in self.by_method(task).items()
            }
        lines = {}
        for method in self.ranked:
            cells = [self.cells[name, method] for name in self.shared]
            shares = [cell.frames / self.ends[name] for cell, name in zip(cells, self.shared, strict=True)]
            grid = shares[0]
            if not all(np.array_equal(grid, share) for share in shares):
                grid = np.linspace(max(share[0] for share in shares), 1, POINTS)
            scores = [_at(grid, share, cell.scores) for cell, share in zip(cells, shares, strict=True)]
            unit = self.ends[self.shared[0]] if self.same_budget else 1.0
            lines[method] = Line(grid * unit, bootstrap(iqm, scores, self.reps))
        return lines

    def over_minutes(self, task: str | None) -> dict[str, Line]:
        """IQM against training time, as far as all runs of the method got; methods without times are missing."""
        lines = {}
        methods = self.by_method(task) if task is not None else self.ranked
        for method in methods:
            cells = [self.cells[name, method] for name in ([task] if task is not None else self.shared)]
            times = [cell.minutes for cell in cells if cell.minutes is not None]
            if len(times) < len(cells):
                continue
            begin, end = max(t[:, 0].max() for t in times), min(t[:, -1].min() for t in times)
            if begin >= end:
                continue
            grid = np.linspace(begin, end, POINTS)
            scores = [
                np.stack([np.interp(grid, minutes, run) for minutes, run in zip(t, cell.scores, strict=True)])
                for t, cell in zip(times, cells, strict=True)
            ]
            lines[method] = Line(grid, bootstrap(iqm, scores, self.reps))
        return lines

    def profiles(self) -> dict[str, Line]:
        """Share of the runs of all tasks that end above a score."""
        return {method: Line(TAUS, profile(self._final(method), TAUS, self.reps)) for method in self.ranked}

    def improvements(self) -> list[Improvement]:
        """Of pairs of methods that were measured under one protocol, the one that ends higher first."""
        pairs = [
            (a, b)
            for i, a in enumerate(self.ranked)
            for b in self.ranked[i + 1 :]
            if self.protocol(a) == self.protocol(b) and (i == 0 or len(self.ranked) <= MANY_METHODS)
        ]
        return [
            Improvement(
                a,
                b,
                improvement(self._final(a), self._final(b), self.reps),
                improvement(self._areas(a), self._areas(b), self.reps),
                smallest_p(self._final(a), self._final(b)),
            )
            for a, b in pairs
        ]

    def rows(self) -> list[Row]:
        """Of all tasks together, if there are several, and of each."""
        together = self.ranked if len(self.tasks) > 1 else ()
        rows = [self._row(ALL, method, self.shared) for method in together]
        return rows + [self._row(task, method, (task,)) for task in self.tasks for method in self.by_method(task)]

    def _row(self, name: str, method: str, tasks: tuple[str, ...]) -> Row:
        cells = [self.cells[task, method] for task in tasks]
        counts = sorted({len(cell.curves) for cell in cells})
        ends = {cell.frames[-1] for cell in cells}
        frames_to, minutes_to, reached = [], [], []
        for threshold in THRESHOLDS:
            when = np.concatenate([time_to(threshold, cell.frames, cell.scores) for cell in cells])
            frames_to.append(float(np.median(when)))
            reached.append(f"{int(np.isfinite(when).sum())}/{len(when)}")
            clocks = [(cell.minutes, cell.scores) for cell in cells if cell.minutes is not None]
            minutes = [time_to(threshold, clock, scores) for clock, scores in clocks]
            minutes_to.append(float(np.median(np.concatenate(minutes))) if len(clocks) == len(cells) else np.nan)
        episodes = [cell.episodes for cell in cells]
        return Row(
            task=name,
            method=method,
            seeds=f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0]),
            episodes=sum(episodes) if all(episodes) else 0,
            frames=ends.pop() if len(ends) == 1 else np.nan,
            score=bootstrap(iqm, [cell.scores[:, -1] for cell in cells], self.reps),
            area=bootstrap(iqm, [cell.areas for cell in cells], self.reps),
            frames_to=tuple(frames_to),
            minutes_to=tuple(minutes_to),
            reached=tuple(reached),
            protocol=self.protocol(method),
        )

    def by_method(self, task: str) -> dict[str, Cell]:
        return {method: self.cells[task, method] for method in self.methods if (task, method) in self.cells}

    def by_task(self, method: str) -> dict[str, Cell]:
        return {task: self.cells[task, method] for task in self.tasks if (task, method) in self.cells}

    def _final(self, method: str) -> list[Array]:
        return [self.cells[task, method].scores[:, -1] for task in self.shared]

    def _areas(self, method: str) -> list[Array]:
        return [self.cells[task, method].areas for task in self.shared]


def compare(curves: Sequence[Curve], note: Note, frames: int | None = None, reps: int = REPS) -> Comparison:
    """Align the curves. `note` is told, in one line each, what a reader must know to trust the numbers.

    With `frames`, runs of ours that ended before it are left out. Raises UserError if nothing is left to compare.
    """
    if frames is not None:
        short = [curve for curve in curves if curve.ours and curve.frames[-1] < frames]
        for curve in short:
            note(f"{curve.source} ends at {curve.frames[-1]:,.0f} frames and was left out")
        curves = [curve for curve in curves if curve not in short]
    if not curves:
        raise UserError("there is nothing to compare: no run has come far enough")
    tasks = tuple(sorted({curve.task for curve in curves}))
    ours = {curve.method: None for curve in sorted(curves, key=lambda curve: curve.method) if curve.ours}
    others = {curve.method: None for curve in sorted(curves, key=lambda curve: curve.method) if not curve.ours}
    cells, ends = {}, {}
    for task in tasks:
        group = [curve for curve in curves if curve.task == task]
        ends[task] = frames or _end(task, [curve for curve in group if curve.ours] or group, note)
        for method in (*ours, *others):
            runs = tuple(sorted((c for c in group if c.method == method), key=lambda curve: curve.seed))
            if runs and (cell := _cell(runs, ends[task], note)):
                cells[task, method] = cell
        _note_grids(task, {method: cells[task, method] for method in ours if (task, method) in cells}, note)
    tasks = tuple(task for task in tasks if any(name == task for name, _ in cells))
    others = {method: None for method in others if any(name == method for _, name in cells)}
    if not cells:
        raise UserError("there is nothing to compare: no method was evaluated often enough")
    shared = tuple(task for task in tasks if all((task, method) in cells for method in (ours or others)))
    whole = [
        method
        for method in (*ours, *others)
        if all((t, method) in cells and cells[t, method].frames[-1] >= NEAR * ends[t] for t in shared) and shared
    ]
    final = {method: iqm(np.concatenate([cells[t, method].scores[:, -1] for t in shared])) for method in whole}
    comparison = Comparison(
        tasks, (*ours, *others), cells, ends, shared, tuple(sorted(whole, key=lambda m: -final[m])), reps
    )
    _note_information(comparison, note)
    _note_trust(comparison, note)
    return comparison


def _end(task: str, curves: Sequence[Curve], note: Note) -> float:
    """The last frame that all have reached."""
    shortest = min(curves, key=lambda curve: curve.frames[-1])
    longest = max(curve.frames[-1] for curve in curves)
    if shortest.frames[-1] < longest:
        hint = f" (ARGS=frames={longest:.0f} leaves out the runs that do not)" if shortest.ours else ""
        note(
            f"{task} is compared at {shortest.frames[-1]:,.0f} frames, where {shortest.source} ends; others go on to "
            f"{longest:,.0f}{hint}"
        )
    return float(shortest.frames[-1])


def _cell(curves: tuple[Curve, ...], end: float, note: Note) -> Cell | None:
    """Runs at the frames of the one with the fewest evaluations, as far as all of them go.

    Ours all have a score at `end`. Of other people's, what was measured before it counts; None if that is nothing.
    """
    begin, end = max(c.frames[0] for c in curves), min(end, *(c.frames[-1] for c in curves))
    fewest = min(curves, key=lambda curve: len(curve.frames)).frames
    grid = fewest[(fewest >= begin) & (fewest <= end)]
    if not curves[0].ours and len(grid) < 2:
        note(f"{curves[0].method} was not evaluated twice on {curves[0].task} up to {end:,.0f} frames: left out")
        return None
    if begin > end:
        first, last = max(curves, key=lambda c: c.frames[0]), min(curves, key=lambda c: c.frames[-1])
        raise UserError(
            f"{first.source} was first evaluated at {begin:,.0f} frames, after the end of the comparison at {end:,.0f} "
            f"({last.source}); leave one of them out with RUNS=..."
        )
    if curves[0].ours:
        grid = np.union1d(grid, [begin, end])
    scores = np.stack([np.interp(grid, curve.frames, curve.scores) for curve in curves])
    minutes = [np.interp(grid, curve.frames, curve.minutes) for curve in curves if curve.minutes is not None]
    return Cell(curves, grid, scores, np.stack(minutes) if len(minutes) == len(curves) else None)


def _at(grid: Array, x: Array, runs: Array) -> Array:
    return np.stack([np.interp(grid, x, run) for run in runs])


def _note_grids(task: str, cells: dict[str, Cell], note: Note) -> None:
    """Tells when runs of a task were not evaluated at the same frames."""
    curves = [curve for cell in cells.values() for curve in cell.curves]
    end = min((cell.frames[-1] for cell in cells.values()), default=0.0)
    grids = [curve.frames[curve.frames <= end] for curve in curves]
    for curve, grid in zip(curves, grids, strict=True):
        if not np.array_equal(grid, grids[0]):
            note(
                f"{task}: {curves[0].source} and {curve.source} were evaluated at different frames; curves are "
                "interpolated linearly, areas and times to a threshold are a little less exact"
            )
            return


def _note_information(comparison: Comparison, note: Note) -> None:
    """Tells when methods learned from more than the same experience."""
    had: dict[str, dict[str, None]] = {}  # in order
    unequal = False
    for task in comparison.tasks:
        cells = {name: cell for name, cell in comparison.by_method(task).items() if comparison.is_ours(name)}
        lists = {name: given(cell.curves[0]) for name, cell in cells.items()}  # the seeds of a method have the same
        unequal |= len(set(map(tuple, lists.values()))) > 1
        for name, things in lists.items():
            had.setdefault(name, {}).update(dict.fromkeys(things))
    if unequal:
        alike: dict[str, list[str]] = {}
        for name in had:
            alike.setdefault(", ".join(had[name]) or "own experience only", []).append(name)
        listed = "; ".join(f"{', '.join(names)}: {things}" for things, names in alike.items())
        note(f"methods had unequal information: {listed}")


def _note_trust(comparison: Comparison, note: Note) -> None:
    """Tells what makes the intervals, or the times, less than they seem."""
    for low, high, meaning in (
        (1, 1, "one seed only is an anecdote and has no interval"),
        (2, MIN_RUNS - 1, "two seeds only have no interval"),
        (MIN_RUNS, ENOUGH_SEEDS - 1, f"fewer than {ENOUGH_SEEDS} seeds, so intervals come out too narrow"),
    ):
        few = []
        for method in filter(comparison.is_ours, comparison.methods):
            counts = {task: len(cell.curves) for task, cell in comparison.by_task(method).items()}
            tasks = [task for task, count in counts.items() if low <= count <= high]
            if tasks:
                few.append(f"{method} on {'every task' if len(tasks) == len(counts) else ', '.join(tasks)}")
        if few:
            note(f"{meaning}: {'; '.join(few)}")
    aside = [task for task in comparison.tasks if task not in comparison.shared]
    if aside:
        note(f"not every method has runs of {', '.join(aside)}: left out of the numbers over all tasks")
    for method in comparison.methods:
        if comparison.shared and method not in comparison.ranked:
            note(f"{method} was not evaluated near the end of every task: left out of the numbers over all tasks")
    machines = {curve.machine for cell in comparison.cells.values() for curve in cell.curves if curve.ours}
    if len(machines) > 1:
        note(f"minutes come from different machines or thread counts: {'; '.join(sorted(machines))}")

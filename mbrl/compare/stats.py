"""Statistics for a handful of runs: how good is a method, and how sure can we be?

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264):
the interquartile mean (IQM) in place of the mean or the median, intervals from a bootstrap that draws runs within each
task, whole distributions in place of single numbers. `tests/test_stats.py` holds them to the authors' library, rliable.

Scores come as one array for each task, with one row for each run: (runs,) or (runs, points). Tasks may differ in the
number of runs; every run weighs the same, except in `improvement`, where every task does.

How many runs can carry what:
- An interval needs MIN_RUNS runs of every task. A bootstrap of n runs understates their variance by (n - 1) / n: with
  one run it sees none, with two half of it.
- Saying that one of two methods is better also needs runs enough for a permutation test to say so. Of n and m runs of a
  task, the most extreme result (all runs of one above all of the other) has the two-sided p = 2 / C(n + m, n), and the
  binomials of several tasks multiply. On one task 3 runs against 3 reach 0.10, 3 against 4 0.057, 4 against 4 0.029; on
  two tasks 3 against 3 of each reach 0.005. Above 1 - CONFIDENCE there is neither an interval nor a verdict.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Scores = Sequence[Array]
Statistic = Callable[[Array, int], Array]  # (runs of all tasks, the axis that they lie on) -> that axis is gone

REPS = 2000  # bootstrap resamples
CONFIDENCE = 0.95
MIN_RUNS = 3  # of every task
CHUNK = 2**20  # numbers resampled at a time, so that memory stays bounded


class Estimate(NamedTuple):
    """A number, or one for each point, and the bounds of its interval: NaN where there are too few runs for one."""

    value: Array
    low: Array
    high: Array


def iqm(scores: Array, axis: int = 0) -> Array:
    """Mean of the middle half: as many values are cut off at each end as fit whole into a quarter of them."""
    count = scores.shape[axis]
    cut = count // 4
    middle = np.take(np.sort(scores, axis), np.arange(cut, count - cut), axis)
    return np.asarray(middle.mean(axis))


def bootstrap(statistic: Statistic, scores: Scores, reps: int = REPS, seed: int = 0) -> Estimate:
    """`statistic` of all runs, with the percentile interval of a bootstrap stratified by task (section 4.1)."""
    tasks = [np.asarray(task, np.float64) for task in scores]
    value = statistic(np.concatenate(tasks), 0)
    if min(map(len, tasks)) < MIN_RUNS:
        return _without_interval(value)
    rng = np.random.default_rng(seed)
    chunk = max(1, CHUNK // sum(task.size for task in tasks))
    draws = []
    for start in range(0, reps, chunk):
        count = min(chunk, reps - start)
        again = [task[rng.integers(len(task), size=(count, len(task)))] for task in tasks]  # (count, runs, ...)
        draws.append(statistic(np.concatenate(again, axis=1), 1))
    return Estimate(value, *_interval(np.concatenate(draws)))


def profile(scores: Scores, thresholds: ArrayLike, reps: int = REPS, seed: int = 0) -> Estimate:
    """Share of runs that score above each threshold (section 4.2); `scores` are (runs,) each."""
    taus = np.asarray(thresholds, np.float64)

    def share(runs: Array, axis: int) -> Array:
        return (runs[..., None] > taus).mean(axis)

    return bootstrap(share, scores, reps, seed)


def improvement(ours: Scores, theirs: Scores, reps: int = REPS, seed: int = 0) -> Estimate:
    """Probability that a run of ours beats a run of theirs on a task drawn at random (section 4.3); a tie is a half.

    Both hold the same tasks in the same order, (runs,) each.
    """
    wins = [
        (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None]) for x, y in zip(ours, theirs, strict=True)
    ]  # (our runs, their runs)
    value = np.mean([win.mean() for win in wins])
    if min(min(win.shape) for win in wins) < MIN_RUNS or smallest_p(ours, theirs) > 1 - CONFIDENCE:
        return _without_interval(value)
    rng = np.random.default_rng(seed)
    draws = np.zeros(reps)
    for win in wins:
        rows, columns = (rng.integers(count, size=(reps, count)) for count in win.shape)
        draws += win[rows[:, :, None], columns[:, None, :]].mean((1, 2)) / len(wins)
    return Estimate(value, *_interval(draws))


def smallest_p(ours: Scores, theirs: Scores) -> float:
    """The least two-sided p that a permutation test, stratified by task, can reach with so many runs; at most 1."""
    labellings = math.prod(math.comb(len(x) + len(y), len(x)) for x, y in zip(ours, theirs, strict=True))
    return min(1.0, 2 / labellings)


def area(clock: Array, scores: Array) -> Array:
    """Mean height of each run's curve (runs, points) over `clock` (points,): its area by the trapezoid rule ÷ width."""
    if len(clock) == 1:
        return scores[:, 0]
    return np.trapezoid(scores, clock, axis=1) / (clock[-1] - clock[0])


def time_to(threshold: float, clock: Array, scores: Array) -> Array:
    """When each run's curve (runs, points) is first at `threshold` or above; infinite where it never is.

    `clock` is (points,), or (runs, points) where every run has its own.
    """
    reached = scores >= threshold
    first = np.argmax(reached, axis=1)
    when = np.broadcast_to(clock, scores.shape)[np.arange(len(scores)), first]
    return np.where(reached.any(axis=1), when, np.inf)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a success rate (Wilson 1927)."""
    z, rate = 1.959964, successes / trials
    middle = rate + z * z / (2 * trials)
    half = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials**2))
    return (middle - half) / (1 + z * z / trials), (middle + half) / (1 + z * z / trials)


def fisher_exact(ours: int, our_trials: int, theirs: int, their_trials: int) -> float:
    """Fisher's exact test: one-sided p of at least `ours` successes where both have the same chance of one."""
    reached, trials = ours + theirs, our_trials + their_trials
    ways = [
        math.comb(our_trials, k) * math.comb(their_trials, reached - k)
        for k in range(ours, min(our_trials, reached) + 1)
    ]
    return sum(ways) / math.comb(trials, reached)


def _interval(draws: Array) -> tuple[Array, Array]:
    outside = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [outside, 100 - outside], axis=0)
    return low, high


def _without_interval(value: Array) -> Estimate:
    """Few runs say little about the next: an interval of hardly any width would claim certainty."""
    missing = np.full_like(value, np.nan)
    return Estimate(np.asarray(value), missing, missing)

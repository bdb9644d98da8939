"""Statistics against cases counted by hand, against rliable's numbers, and their intervals against the truth."""

import itertools

import numpy as np
import pytest

from mbrl.compare.stats import Estimate, area, bootstrap, improvement, iqm, profile, smallest_p, time_to

# -- by hand -----------------------------------------------------------------------------------------------------------


def test_iqm_by_hand() -> None:
    assert iqm(np.array([9.0, 1.0, 2.0, 4.0])) == 3.0  # of 1 2 4 9 the middle two
    assert iqm(np.array([5.0, 1.0, 2.0, 3.0, 100.0])) == pytest.approx(10 / 3)  # a quarter of five is one
    assert iqm(np.array([7.0])) == 7.0
    assert iqm(np.array([0.0, 1.0, 5.0])) == 2.0  # a quarter of three is none
    grid = np.arange(24.0).reshape(2, 4, 3)
    assert iqm(grid, 1).tolist() == [[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]


def test_area_by_hand() -> None:
    curves = np.array([[0.0, 1.0, 1.0], [0.5, 0.5, 0.5]])
    assert area(np.array([0.0, 10.0, 40.0]), curves).tolist() == [(5 + 30) / 40, 0.5]
    assert area(np.array([10.0]), curves[:, :1]).tolist() == [0.0, 0.5]


def test_time_to_a_threshold_by_hand() -> None:
    curves = np.array([[0.0, 0.5, 0.2], [0.0, 0.0, 0.4], [0.9, 0.1, 0.1]])
    clock = np.array([10.0, 20.0, 30.0])
    assert time_to(0.5, clock, curves).tolist() == [20.0, np.inf, 10.0]
    assert time_to(0.4, clock * [[1], [2], [3]], curves).tolist() == [20.0, 60.0, 30.0]


def test_profile_by_hand() -> None:
    estimate = profile([np.array([0.0, 0.5] * 2), np.array([0.5, 1.0] * 2)], [0.0, 0.4, 0.5, 1.0])
    assert estimate.value.tolist() == [0.75, 0.75, 0.25, 0.0]  # above, not at
    assert np.all(estimate.low <= estimate.value)
    assert np.all(estimate.value <= estimate.high)


def test_improvement_by_hand() -> None:
    ours, theirs = [np.array([1.0, 3.0]), np.array([2.0])], [np.array([2.0, 0.0]), np.array([2.0])]
    assert improvement(ours, theirs).value == pytest.approx((3 / 4 + 1 / 2) / 2)  # 1>0 3>2 3>0; a tie
    assert improvement(theirs, ours).value == pytest.approx((1 / 4 + 1 / 2) / 2)


@pytest.mark.parametrize("runs", [1, 2])
def test_too_few_runs_have_no_interval(runs: int) -> None:
    for tasks in ([runs], [runs, 5], [5, runs]):
        few = [np.linspace(0.1, 0.9, count) for count in tasks]
        for estimate in (bootstrap(iqm, few), profile(few, [0.1, 0.9]), improvement(few, [np.zeros(9) for _ in tasks])):
            assert np.isfinite(estimate.value).all()
            assert np.isnan(estimate.low).all()
            assert np.isnan(estimate.high).all()
    assert np.isfinite(bootstrap(iqm, [np.linspace(0.1, 0.9, 3)]).low)


@pytest.mark.parametrize(
    ("runs", "p", "carried"),
    [
        ([(2, 2)], 1 / 3, False),
        ([(1, 3)], 1 / 2, False),
        ([(3, 3)], 1 / 10, False),
        ([(3, 4)], 2 / 35, False),
        ([(4, 4)], 1 / 35, True),
        ([(3, 5)], 1 / 28, True),
        ([(2, 8)], 2 / 45, False),  # the p would do, but two runs have no interval
        ([(3, 3), (3, 3)], 1 / 200, True),
        ([(1, 1)], 1.0, False),
    ],
)
def test_what_so_many_runs_can_show(runs: list[tuple[int, int]], p: float, carried: bool) -> None:
    """All runs of one above all of the other: as clear as it gets. The p by writing out every labelling."""
    ours, theirs = [np.ones(n) for n, _ in runs], [np.zeros(m) for _, m in runs]
    assert smallest_p(ours, theirs) == pytest.approx(p)
    assert np.isfinite(improvement(ours, theirs).low) == carried
    labellings = itertools.product(*(itertools.combinations(range(n + m), n) for n, m in runs))
    as_extreme = [
        all(chosen == tuple(range(n)) for chosen, (n, _) in zip(labelling, runs, strict=True))
        or all(chosen == tuple(range(m, n + m)) for chosen, (n, m) in zip(labelling, runs, strict=True))
        for labelling in labellings
    ]
    assert np.mean(as_extreme) == pytest.approx(p)


def test_runs_are_drawn_within_their_task() -> None:
    """Equal runs of unequal tasks: nothing to be unsure about. Drawn across tasks they would be."""
    estimate = bootstrap(iqm, [np.full(5, 0.1), np.full(5, 0.9)])
    assert [float(value) for value in estimate] == pytest.approx([0.5, 0.5, 0.5])


def test_points_have_intervals_of_their_own() -> None:
    """A whole curve at once is what each of its points would be, and the size of a chunk changes nothing."""
    tasks = [np.random.default_rng(task).random((5, 7)) for task in range(3)]
    together = bootstrap(iqm, tasks, reps=500)
    one = bootstrap(iqm, [task[:, 2] for task in tasks], reps=500)
    assert [values[2] for values in together] == pytest.approx([float(value) for value in one])


# -- against rliable ---------------------------------------------------------------------------------------------------

# Made with rliable at commit 3ccd9f4 (pandas 2.3.3), x and y being `grid` as (runs, tasks):
#   get_interval_estimates({"x": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=8000)
#   get_interval_estimates({"xy": (x, y)}, lambda a, b: np.array([metrics.probability_of_improvement(a, b)]), reps=3000)
#   create_performance_profile({"x": x}, np.linspace(0.1, 0.9, 5), reps=3000)
# Values must be equal. Intervals come from other random draws: rliable's own move by as much from seed to seed.
RLIABLE_IQM = (0.4, 0.2625, 0.5375)
RLIABLE_IMPROVEMENT = (0.43333333, 0.28333333, 0.59166667)
RLIABLE_PROFILE = (
    [0.76666667, 0.56666667, 0.36666667, 0.2, 0.0],
    [0.63333333, 0.4, 0.2, 0.06666667, 0.0],
    [0.9, 0.73333333, 0.53333333, 0.33333333, 0.0],
)
A_RUN = 1 / 30  # a profile's bounds move in steps of one of the 30 runs


def grid(runs: int, tasks: int, shift: int) -> list[np.ndarray]:
    """Scores that need no random numbers: one array of runs for each task."""
    run, task = np.mgrid[:runs, :tasks]
    return list((((7 * run + 5 * task * task + run * task + shift) % 20) / 20).T)


@pytest.mark.parametrize(
    ("estimate", "rliable", "tolerance"),
    [
        (bootstrap(iqm, grid(5, 6, 0)), RLIABLE_IQM, 0.01),
        (improvement(grid(5, 6, 0), grid(4, 6, 3)), RLIABLE_IMPROVEMENT, 0.02),
        (profile(grid(5, 6, 0), np.linspace(0.1, 0.9, 5)), RLIABLE_PROFILE, 1.01 * A_RUN),
    ],
    ids=["iqm", "improvement", "profile"],
)
def test_as_rliable(estimate: Estimate, rliable: tuple, tolerance: float) -> None:
    assert estimate.value == pytest.approx(np.array(rliable[0]), abs=1e-8)
    assert estimate.low == pytest.approx(np.array(rliable[1]), abs=tolerance)
    assert estimate.high == pytest.approx(np.array(rliable[2]), abs=tolerance)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 200 experiments with 10 seeds on 4 tasks; the true IQM from very many runs."""
    truth = float(iqm(np.concatenate([np.random.default_rng(1).beta(1 + task, 2, 100_000) for task in range(4)])))
    held = 0
    for trial in range(200):
        rng = np.random.default_rng([2, trial])
        estimate = bootstrap(iqm, [rng.beta(1 + task, 2, 10) for task in range(4)], reps=300)
        held += bool(estimate.low <= truth <= estimate.high)
    assert 0.88 <= held / 200 <= 0.99

"""The planner: does every preset optimise, do all keep the common rules, has noise the statistics it should have."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from planners import PRESETS
from torch import Tensor

from agents import InvalidConfig, StateMismatch
from agents.planner import Planner, select_elites, time_noise

CPU = torch.device("cpu")
EVERY_PRESET = pytest.mark.parametrize("name", PRESETS)


def make(name: str, action_dim: int = 2, seed: int = 0, **changes: Any) -> Planner:
    return Planner(replace(PRESETS[name], **changes), action_dim, seed, CPU)


def towards(target: Tensor, scale: float = 1.0) -> Callable[[Tensor], Tensor]:
    """A score that is highest at `target` (H, A) and knows no bounds."""
    return lambda actions: -scale * (actions - target).square().sum((1, 2))


class Recorder:
    """A score that keeps what it was asked."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        self.score, self.asked = score, []

    def __call__(self, actions: Tensor) -> Tensor:
        self.asked.append(actions.clone())
        return self.score(actions)


# Does it optimise?


@pytest.mark.parametrize("kind", ["inside", "on", "outside"])
@pytest.mark.parametrize(
    ("name", "shape", "plans", "scale", "changes"),
    [
        # VP2's weights suit scores in the hundreds, sums of squared errors of pixels; hence 100.
        ("vp2_mppi", (10, 2), 15, 100.0, {}),
        ("vp2_cem", (10, 2), 15, 1.0, {}),
        ("cem", (5, 4), 1, 1.0, {}),
        ("icem", (10, 2), 10, 1.0, {}),
        # Made for few dimensions and a policy's help: twice its iterations for 20 dimensions without.
        ("tdmpc2", (4, 5), 10, 1.0, {"horizon": 4, "iterations": 12}),
    ],
)
def test_quadratics_of_20_dimensions(name, shape, plans, scale, changes, kind):
    """Within 2 % of the best, of the way from doing nothing, after `plans` warm-started plans.

    The best action is the same at every time, so that the shifted plan stays good; curvatures differ everywhere.
    """
    assert math.prod(shape) == 20
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(shape[1], generator=generator) * 2 - 1
        size = {"inside": 0.4 + 0.4 * drawn.abs(), "on": 1.0, "outside": 1.2 + 0.6 * drawn.abs()}[kind]
        target = (drawn.sign() * size).expand(shape)
        curvature = (0.5 + 1.5 * torch.rand(shape, generator=generator)) * scale

        def score(actions, target=target, curvature=curvature):
            return -(curvature * (actions - target).square()).sum((1, 2))

        planner = make(name, shape[1], seed, **{"execute": 1, **changes})
        for _ in range(plans):
            plan = planner.plan(score)
        nothing, best, ours = score(torch.stack([torch.zeros(shape), target.clamp(-1, 1), plan.actions])).tolist()
        assert (best - ours) / (best - nothing) < 0.02, f"problem {seed}"


# The rules


@EVERY_PRESET
def test_candidates(name):
    score = Recorder(towards(torch.full((PRESETS[name].horizon, 2), 3.0)))
    planner = make(name)
    config, before = planner.config, torch.get_rng_state()
    plan = planner.plan(score)
    assert torch.equal(torch.get_rng_state(), before)
    assert plan.actions.shape == (config.horizon, 2)
    assert plan.actions.abs().max() <= 1
    assert [len(asked) for asked in score.asked] == [config.samples] * config.iterations + [1] * (
        config.answer == "mean"
    )
    assert all(asked.abs().max() <= 1 for asked in score.asked)
    assert score.asked[0].abs().max() == 1, "some were clipped, before they were scored"
    assert torch.equal(score.asked[0][0], torch.zeros(config.horizon, 2))
    for asked, following in zip(score.asked[: config.iterations - 1], score.asked[1:], strict=False):
        elites = select_elites(asked, score.score(asked), config.elites, config.weight_scale)
        if not config.momentum:
            torch.testing.assert_close(following[0], (elites.weights[:, None, None] * elites.actions).sum(0))
        assert torch.equal(following[1 : 1 + config.kept], elites.actions[: config.kept])
    assert plan.promised == pytest.approx(float(score.score(plan.actions[None])))
    assert torch.equal(plan.scores, score.score(score.asked[config.iterations - 1]))
    assert plan.metrics["best"] == pytest.approx(
        max(float(score.score(asked).max()) for asked in score.asked[: config.iterations])
    )
    assert plan.metrics["unscored"] == plan.metrics["blind_iterations"] == 0


def test_answers():
    score = Recorder(lambda actions: torch.arange(len(actions)).float() - 1000.0 * len(score.asked))  # ever worse
    best_seen = make("icem").plan(score)
    assert torch.equal(best_seen.actions, score.asked[0][-1])
    score.asked.clear()
    best_of_last = make("vp2_cem").plan(score)
    assert torch.equal(best_of_last.actions, score.asked[-1][-1])
    score.asked.clear()
    drawn = make("tdmpc2").plan(score)
    rank = [torch.equal(drawn.actions, candidate) for candidate in score.asked[-1].flip(0)].index(True)
    assert rank < 20, "weights fall by exp(-0.5) from one elite to the next"


@EVERY_PRESET
def test_proposals(name):
    score = Recorder(lambda actions: actions.mean((1, 2)))
    planner = make(name, iterations=2)
    config = planner.config
    proposals = torch.rand(24, config.horizon, 2) * 3 - 1  # some outside the bounds
    planner.plan(score, proposals)
    first, second = score.asked[:2]
    assert torch.equal(first[1:25], proposals.clamp(-1, 1))
    again = torch.equal(second[1 + config.kept : 25 + config.kept], proposals.clamp(-1, 1))
    assert again == (name == "tdmpc2")
    many = config.samples - config.kept
    with pytest.raises(ValueError, match=f"{many} proposals.* room for {many - 1}"):
        planner.plan(score, proposals[:1].expand(many, -1, -1))


def test_a_good_proposal_is_answered():
    target = torch.randn(10, 2, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    plan = make("icem").plan(towards(target), target[None])
    assert torch.equal(plan.actions, target)
    assert plan.promised == 0


@EVERY_PRESET
def test_elites_of_nan_scores(name):
    """With 30 % of the scores missing, the elites are those of the others, to the last bit."""
    config = PRESETS[name]
    generator = torch.Generator().manual_seed(0)
    actions = torch.randn(config.samples, config.horizon, 2, generator=generator)
    scores = torch.randint(100, (config.samples,), generator=generator).float()  # with equal ones
    missing = torch.rand(config.samples, generator=generator) < 0.3
    assert 0.2 < missing.float().mean() < 0.4
    holed = scores.where(~missing, torch.nan)
    holed[missing.nonzero()[:3, 0]] = torch.tensor([math.inf, -math.inf, math.nan])
    ours = select_elites(actions, holed, config.elites, config.weight_scale)
    absent = select_elites(actions[~missing], scores[~missing], config.elites, config.weight_scale)
    assert all(torch.equal(a, b) for a, b in zip(ours, absent, strict=True))
    assert len(ours.scores) == min(config.elites, int((~missing).sum()))
    assert ours.weights.sum() == pytest.approx(1)


@EVERY_PRESET
def test_plan_of_nan_scores(name):
    """A candidate without a score changes nothing more than a hopeless one."""
    target = torch.full((PRESETS[name].horizon, 2), 0.4)

    def holed(with_: float) -> Callable[[Tensor], Tensor]:
        generator = torch.Generator().manual_seed(0)

        def score(actions: Tensor) -> Tensor:
            scores = towards(target)(actions)
            scores[torch.rand(len(scores), generator=generator) < 0.3 * (len(scores) > 1)] = with_
            return scores

        return score

    plan, other = make(name).plan(holed(math.nan)), make(name).plan(holed(-1e9))
    torch.testing.assert_close(plan.actions, other.actions)
    assert plan.metrics["unscored"] == pytest.approx(0.3, abs=0.1)
    assert math.isfinite(plan.promised)
    assert other.metrics["unscored"] == 0


@EVERY_PRESET
def test_only_nan_scores(name):
    planner = make(name, execute=1)
    nothing = planner.plan(lambda actions: actions.new_full((len(actions),), torch.nan))
    assert torch.equal(nothing.actions, torch.zeros_like(nothing.actions))
    assert math.isnan(nothing.promised)
    assert math.isnan(nothing.metrics["best"])
    assert nothing.metrics["unscored"] == 1
    assert nothing.metrics["blind_iterations"] == planner.config.iterations
    assert nothing.metrics["std"] == pytest.approx(planner.config.std[0])
    planner.plan(towards(torch.full((planner.config.horizon, 2), 0.5)))
    before = planner.state()["mean"]
    kept = planner.plan(lambda actions: actions.new_full((len(actions),), -torch.inf))
    assert torch.equal(kept.actions[:-1], before[1:])
    assert torch.equal(planner.state()["mean"], kept.actions)


@EVERY_PRESET
def test_warm_start(name):
    execute = 2
    planner = make(name, execute=execute)
    config = planner.config
    score = Recorder(towards(torch.linspace(-0.8, 0.8, config.horizon)[:, None].expand(-1, 2)))
    plan = planner.plan(score)
    state = planner.state()
    assert torch.equal(state["mean"], plan.actions) == (name in ("vp2_mppi", "vp2_cem", "cem"))
    score.asked.clear()
    planner.plan(score)
    for plans, begun in (
        (state["mean"][None], score.asked[0][:1]),
        (state["kept"], score.asked[0][1 : 1 + config.kept]),
    ):
        end = plans[:, -1:] if config.fill == "repeat" else torch.zeros_like(plans[:, -1:])
        assert torch.equal(begun, torch.cat([plans[:, execute:], end, end], dim=1))
    planner.reset()
    score.asked.clear()
    planner.plan(score)
    assert torch.equal(score.asked[0][0], torch.zeros(config.horizon, 2))


@EVERY_PRESET
def test_resumed_in_the_middle(name):
    score = towards(torch.full((PRESETS[name].horizon, 2), 0.5))
    planner = make(name)
    planner.plan(score)
    file = io.BytesIO()
    torch.save(planner.state(), file)
    file.seek(0)
    other = make(name, seed=5)
    other.load_state(torch.load(file, weights_only=True))
    for _ in range(2):
        ours, theirs = planner.plan(score), other.plan(score)
        assert torch.equal(ours.actions, theirs.actions)
        assert torch.equal(ours.scores, theirs.scores)
        assert ours.promised == theirs.promised
    assert not torch.equal(make(name).plan(score).scores, make(name, seed=5).plan(score).scores)
    with pytest.raises(StateMismatch, match=r"\(horizon, action\)"):
        make(name, action_dim=3).load_state(planner.state())


def test_a_state_before_the_first_plan():
    planner = make("icem")
    file = io.BytesIO()
    torch.save(planner.state(), file)
    file.seek(0)
    other = make("icem", seed=3)
    other.plan(towards(torch.ones(10, 2)))
    other.load_state(torch.load(file, weights_only=True))
    score = towards(torch.full((10, 2), 0.5))
    assert torch.equal(planner.plan(score).actions, other.plan(score).actions)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"elites": 65}, "elites=65: must be at most samples=64"),
        ({"kept": 9}, "kept=9: must be at most elites=8"),
        ({"samples": 8, "kept": 8}, "kept=8 and proposals=8: must leave samples=8 room"),
        ({"proposals": 61}, "kept=3 and proposals=61: must leave samples=64 room"),
        ({"execute": 11}, "execute=11: must be at most horizon=10"),
        ({"std_min": 3.0, "std_max": 2.0}, "std_min=3.0"),
        ({"noise": "filtered", "noise_parameter": 2.0}, "noise_parameter=2.0"),
        ({"noise": "pink"}, "noise='pink' is unknown: choose white, filtered"),
        ({"answer": "median"}, "answer='median'"),
        ({"fill": "noise"}, "fill='noise'"),
        ({"carry": "best"}, "carry='best'"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(changes, message):
    with pytest.raises(InvalidConfig) as refused:
        replace(PRESETS["icem"], **changes)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_std_of_each_dimension():
    config = replace(PRESETS["vp2_mppi"], std=(0.5, 0.5, 0.1))
    score = Recorder(lambda actions: actions.new_zeros(len(actions)))
    Planner(config, 3, 0, CPU).plan(score)
    spread = score.asked[0][1:, 0].std(0)
    assert spread.tolist() == pytest.approx([0.47, 0.47, 0.1], rel=0.2)
    with pytest.raises(InvalidConfig, match="must be one number or 4"):
        Planner(config, 4, 0, CPU)


# Noise


def shaped(kind: str, parameter: float, horizon: int = 10) -> Tensor:
    white = torch.randn(40_000, horizon, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return time_noise(white, torch.full((horizon, 1), 0.5, dtype=torch.float64), kind, parameter)[..., 0] / 0.5


@pytest.mark.parametrize("horizon", [1, 2, 7, 10])
@pytest.mark.parametrize(("kind", "parameter"), [("white", 0.0), ("autoregressive", 0.8), ("coloured", 2.0)])
def test_noise_that_keeps_its_variance(kind, parameter, horizon):
    torch.testing.assert_close(
        shaped(kind, parameter, horizon).var(0), torch.ones(horizon, dtype=torch.float64), atol=0.03, rtol=0
    )


def test_filtered_noise_loses_variance_to_a_third():
    variance = shaped("filtered", 0.5).var(0).tolist()
    expected = [1.0]
    for _ in range(9):
        expected.append(0.25 * expected[-1] + 0.25)
    assert variance == pytest.approx(expected, rel=0.04)
    assert variance[-1] == pytest.approx(1 / 3, rel=0.04)


@pytest.mark.parametrize(
    ("kind", "parameter", "expected"),
    [("white", 0.0, 0.0), ("autoregressive", 0.8, 0.8), ("filtered", 0.5, 0.5)],
)
def test_correlation_of_neighbours(kind, parameter, expected):
    noise = shaped(kind, parameter)
    assert float(torch.corrcoef(noise[:, -2:].T)[0, 1]) == pytest.approx(expected, abs=0.02)


def test_spectrum_of_coloured_noise():
    power = torch.fft.rfft(shaped("coloured", 2.0), dim=1).abs().square().mean(0)
    ratios = (power[1] / power).tolist()
    # Frequency k has 1 / k^2 of the power, the constant part that of the lowest frequency.
    assert ratios == pytest.approx([1, 1, 4, 9, 16, 25], rel=0.06)

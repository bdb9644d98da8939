"""The published planners' formulas, written down once more in numpy and loops; only the Gaussian draws are torch's."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from planners import PRESETS
from torch import Tensor

from agents.planner import Planner, PlannerConfig, refit, select_elites, time_noise


class Numpy:
    """The same Gaussian draws, and quadratics to score, in float64."""

    def __init__(self, config: PlannerConfig, seed: int) -> None:
        self.config, self.generator = config, torch.Generator().manual_seed(seed)
        self.target = np.linspace(-1.3, 0.9, config.horizon * 2).reshape(config.horizon, 2)

    def draws(self) -> np.ndarray:
        shape = (self.config.samples, self.config.horizon, 2)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).numpy()

    def scores(self, actions: np.ndarray) -> np.ndarray:
        return np.array([-10 * ((one - self.target) ** 2).sum() for one in actions])

    def planner(self, seed: int) -> Planner:
        return Planner(self.config, 2, seed, "cpu", dtype=torch.float64)

    def score(self, actions: Tensor) -> Tensor:
        return torch.from_numpy(self.scores(actions.numpy()))


def vp2_noise(draws: np.ndarray, std: np.ndarray) -> np.ndarray:
    """e_0 = n_0 std_0, e_t = 0.5 e_(t-1) + 0.5 n_t std_t."""
    noise = np.zeros_like(draws)
    for i in range(draws.shape[0]):
        for t in range(draws.shape[1]):
            fresh = draws[i, t] * std[t]
            noise[i, t] = 0.5 * noise[i, t - 1] + 0.5 * fresh if t else fresh
    return noise


def candidates(mean: np.ndarray, noise: np.ndarray) -> np.ndarray:
    actions = np.clip(mean + noise, -1, 1)
    actions[0] = mean
    return actions


def moved_on(plan: np.ndarray) -> np.ndarray:
    return np.concatenate([plan[1:], plan[-1:]])


def test_correlated_noise_golden():
    draws = np.random.default_rng(0).normal(size=(5, 10, 2))
    std = np.random.default_rng(1).uniform(0.1, 1, size=(10, 2))
    ours = time_noise(torch.from_numpy(draws), torch.from_numpy(std), "filtered", 0.5)
    np.testing.assert_allclose(ours, vp2_noise(draws, std), rtol=0, atol=1e-10)


def test_vp2_mppi_golden():
    golden = Numpy(PRESETS["vp2_mppi"], seed=7)
    planner, mean = golden.planner(seed=7), np.zeros((10, 2))
    for _ in range(3):
        actions = candidates(mean, vp2_noise(golden.draws(), np.full((10, 2), 0.5)))
        scores = golden.scores(actions)
        weights = [math.exp(0.05 * (score - max(scores))) for score in scores]
        mean = sum(weight * one for weight, one in zip(weights, actions, strict=True)) / sum(weights)
        plan = planner.plan(golden.score)
        np.testing.assert_allclose(plan.actions, mean, rtol=0, atol=1e-10)
        assert plan.promised == pytest.approx(golden.scores(mean[None])[0], abs=1e-10)
        mean = moved_on(mean)


def test_vp2_cem_golden():
    golden = Numpy(PRESETS["vp2_cem"], seed=8)
    planner, mean = golden.planner(seed=8), np.zeros((10, 2))
    for _ in range(3):
        variance = np.full((10, 2), 0.5**2)
        for _ in range(3):
            bounded = np.minimum(variance, np.minimum(((mean + 1) / 2) ** 2, ((1 - mean) / 2) ** 2))
            actions = candidates(mean, vp2_noise(golden.draws(), np.sqrt(bounded)))
            ranked = sorted(actions, key=lambda one: -golden.scores(one[None])[0])
            mean, variance = np.mean(ranked[:10], axis=0), np.var(ranked[:10], axis=0)  # 5 % of 200
        plan = planner.plan(golden.score)
        np.testing.assert_allclose(plan.actions, ranked[0], rtol=0, atol=1e-10)
        assert plan.metrics["std"] == pytest.approx(np.sqrt(variance).mean(), abs=1e-10)
        mean = moved_on(ranked[0])


def test_tdmpc2_golden():
    golden = Numpy(PRESETS["tdmpc2"], seed=9)
    planner, mean = golden.planner(seed=9), np.zeros((3, 2))
    policy = np.random.default_rng(0).uniform(-1, 1, size=(24, 3, 2))
    for _ in range(3):
        std = np.full((3, 2), 2.0)
        for _ in range(6):
            actions = candidates(mean, golden.draws() * std)
            actions[1:25] = policy
            scores = golden.scores(actions)
            best = np.argsort(-scores)[:64]
            weights = np.exp(0.5 * (scores[best] - scores.max()))
            weights /= weights.sum()
            mean = np.einsum("e,eha->ha", weights, actions[best])
            std = np.sqrt(np.einsum("e,eha->ha", weights, (actions[best] - mean) ** 2)).clip(0.05, 2)
        chosen = torch.multinomial(torch.from_numpy(weights), 1, generator=golden.generator)
        plan = planner.plan(golden.score, torch.from_numpy(policy))
        np.testing.assert_allclose(planner.state()["mean"], mean, rtol=0, atol=1e-10)
        np.testing.assert_allclose(plan.actions, actions[best][int(chosen)], rtol=0, atol=1e-10)
        assert plan.metrics["std"] == pytest.approx(std.mean(), abs=1e-10)
        mean = np.concatenate([mean[1:], np.zeros((1, 2))])


def test_refit_with_momentum():
    config = replace(PRESETS["icem"], std_min=0.01)
    actions = np.random.default_rng(0).uniform(-1, 1, size=(64, 10, 2))
    scores = np.random.default_rng(1).normal(size=64)
    best = actions[np.argsort(-scores)[:8]]
    elites = select_elites(torch.from_numpy(actions), torch.from_numpy(scores), 8, 0.0)
    old = torch.full((10, 2), 0.3, dtype=torch.float64)
    mean, std = refit(elites, old, 2 * old, config)
    np.testing.assert_allclose(mean, 0.1 * 0.3 + 0.9 * best.mean(0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(std, 0.1 * 0.6 + 0.9 * best.std(0), rtol=0, atol=1e-10)

"""Planning by sampling: draw action sequences, score them, move the distribution towards the good ones, repeat.

    planner = Planner(config, action_dim=4, seed=1, device="cpu")
    planner.reset()                            # at an episode's start
    plan = planner.plan(score)                 # score: actions (N, H, A) -> (N,), higher is better
    plan.actions[: planner.config.execute]     # take these, then plan again

One loop; the published planners are settings of it, and their values lie in `configs/planners/`:

    vp2_mppi   MPPI of VP2 (2304.13723), used by iVideoGPT (2405.15223): one iteration, a softmax over all samples
    vp2_cem    CEM of VP2: std kept within half the distance to the bounds, the best sample is the answer
    cem        CEM of DINO-WM (2411.04983) and LeWM (2603.19312): white noise, equal weights, the mean is the answer
    icem       iCEM (2008.06389): coloured noise, elites kept over, momentum, the best sample seen is the answer
    tdmpc2     MPPI of TD-MPC2 (2310.16828): a softmax over elites, candidates of the policy, an elite is the answer

Common to all of them, where the originals differ: the first candidate of an iteration is the mean itself, and a
refitted std is the population's, not Bessel's.

Letters: N candidates, E elites, P proposals of a policy, K elites kept over, H horizon, A action.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from agents.api import InvalidConfig, StateMismatch

Score = Callable[[Tensor], Tensor]

CHOICES = {
    "noise": ("white", "filtered", "autoregressive", "coloured"),
    "answer": ("mean", "best_seen", "best_of_last", "drawn"),
    "carry": ("mean", "answer"),
    "fill": ("repeat", "zeros"),
}


@dataclass(frozen=True)
class PlannerConfig:
    """Settings of a planner; the published ones lie in `configs/planners/`, where ranges are checked.

    Raises:
        InvalidConfig: a setting that cannot be used.
    """

    horizon: Annotated[int, "[1, 1000]"]  # H, actions a plan
    samples: Annotated[int, "[1, 1000000]"]  # N, candidates an iteration, all kinds of them together
    iterations: Annotated[int, "[1, 1000]"]
    elites: Annotated[
        int, "[1, inf)"
    ]  # E, candidates that the distribution is refitted to; fewer if fewer have a finite score
    kept: Annotated[int, "[0, inf)"]  # K, of the elites; candidates of the next iteration, and shifted of the next plan
    execute: Annotated[int, "[1, inf)"]  # actions taken before the next plan; the warm start is shifted by so many
    noise: str  # in time: white | filtered | autoregressive | coloured, see `time_noise`
    noise_parameter: Annotated[
        float, "[0, inf)"
    ]  # correlation of neighbours (filtered, autoregressive), exponent beta (coloured)
    # at the start of every plan, in action units; one for all dimensions or A of them
    std: Annotated[tuple[Annotated[float, "(0, inf)"], ...], "[1, inf)"]
    std_min: Annotated[float, "[0, inf)"]  # bounds of the refitted std
    std_max: Annotated[float, "(0, inf)"]
    std_within_bounds: bool  # sample with a std of at most half the distance from the mean to the nearer of -1 and 1
    refit_std: bool
    weight_scale: Annotated[
        float, "[0, 1000000]"
    ]  # elites weigh softmax(weight_scale * score): it depends on the score's units; 0: equally
    momentum: Annotated[float, "[0, 1)"]  # share of the old mean and std in the new ones
    proposals: Annotated[int, "[0, inf)"]  # candidates that a policy is asked for, where there is one
    proposals_always: bool  # they are candidates of every iteration, not of the first alone
    answer: str  # mean | best_seen | best_of_last (iteration) | drawn (an elite, by weight)
    carry: str  # what the next plan starts from: mean | answer
    fill: str  # behind the shifted warm start: repeat (its last action) | zeros

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InvalidConfig(f"{name}={getattr(self, name)!r} is unknown: choose {', '.join(known)}")
        correlated = self.noise in ("filtered", "autoregressive")
        needs = {
            f"elites={self.elites}: must be at most samples={self.samples}": self.elites <= self.samples,
            f"kept={self.kept}: must be at most elites={self.elites}": self.kept <= self.elites,
            f"kept={self.kept} and proposals={self.proposals}: must leave samples={self.samples} room for the mean": (
                self.kept + self.proposals < self.samples
            ),
            f"execute={self.execute}: must be at most horizon={self.horizon}": self.execute <= self.horizon,
            f"std_min={self.std_min}: must be at most std_max={self.std_max}": self.std_min <= self.std_max,
            f"noise_parameter={self.noise_parameter}: must be less than 1 if noise={self.noise}": not correlated
            or self.noise_parameter < 1,
        }
        for message, met in needs.items():
            if not met:
                raise InvalidConfig(message)


class Plan(NamedTuple):
    """What a planner decided."""

    actions: Tensor  # (H, A) in [-1, 1]
    promised: float  # the score of just these actions; NaN if no candidate had a finite one
    scores: Tensor  # (N,) of the last iteration, as the scoring function gave them
    metrics: dict[str, float]  # see `Planner.plan`


class Elites(NamedTuple):
    """The best candidates, best first."""

    actions: Tensor  # (E, H, A)
    scores: Tensor  # (E,), all finite
    weights: Tensor  # (E,), their sum is 1


def time_noise(white: Tensor, std: Tensor, kind: str, parameter: float) -> Tensor:
    """Correlate Gaussian noise in time.

    Args:
        white: (N, H, A) of unit variance.
        std: (H, A).
        kind: "white" has variance std^2 and no correlation.
            "filtered" is VP2's e_t = b e_(t-1) + (1 - b) std_t n_t from e_0 = std_0 n_0; its variance is not kept
            and falls to (1 - b) / (1 + b), a third at b = 0.5.
            "autoregressive" keeps the variance: x_t = b x_(t-1) + sqrt(1 - b^2) n_t, times std_t.
            "coloured" keeps it too: power proportional to 1 / frequency^beta, the lowest frequency taken for the
            constant part (Timmer & Koenig 1995, as in iCEM), times std_t.
        parameter: b or beta.
    Returns:
        (N, H, A).
    """
    horizon = white.shape[1]
    if kind == "coloured":
        frequency = torch.arange(horizon // 2 + 1, dtype=white.dtype, device=white.device).clamp(min=1)
        gain = frequency ** (-parameter / 2)  # (H // 2 + 1,)
        # The variance of the filtered noise is the mean of gain^2 over all H frequencies, of which rfft gives half.
        both = torch.cat([gain, gain[1 : (horizon + 1) // 2]])
        gain = gain / both.square().mean().sqrt()
        return std * torch.fft.irfft(torch.fft.rfft(white, dim=1) * gain[:, None], n=horizon, dim=1)
    if kind == "white":
        return std * white
    if kind == "filtered":
        white, new = std * white, 1 - parameter
    else:
        new = math.sqrt(1 - parameter**2)
    steps = [white[:, 0]]
    for t in range(1, horizon):
        steps.append(parameter * steps[-1] + new * white[:, t])
    noise = torch.stack(steps, dim=1)
    return noise if kind == "filtered" else std * noise


def select_elites(actions: Tensor, scores: Tensor, count: int, weight_scale: float) -> Elites:
    """The `count` best of actions (N, H, A) with scores (N,), as if those without a finite score were not there.

    Equal scores keep their order. There are fewer elites, or none, if fewer scores are finite.
    """
    scored = scores.isfinite()
    actions, scores = actions[scored], scores[scored]
    order = scores.argsort(descending=True, stable=True)[:count]
    actions, scores = actions[order], scores[order]
    return Elites(actions, scores, (weight_scale * scores).softmax(0))


def refit(elites: Elites, mean: Tensor, std: Tensor, config: PlannerConfig) -> tuple[Tensor, Tensor]:
    """New mean and std, (H, A) each, from the elites and the old ones."""
    weights = elites.weights[:, None, None]
    center = (weights * elites.actions).sum(0).clamp(-1, 1)  # rounded, the weights' sum may be a bit above 1
    if config.refit_std:
        spread = (weights * (elites.actions - center).square()).sum(0).sqrt()
        std = (config.momentum * std + (1 - config.momentum) * spread).clamp(config.std_min, config.std_max)
    return config.momentum * mean + (1 - config.momentum) * center, std


class Planner:
    """Plans for one environment (see the module's docstring).

    Args:
        config: its settings.
        action_dim: A.
        seed: of its own generator; nothing else is drawn from.
        device: where candidates are drawn and refitted.
        dtype: of the candidates.
    Raises:
        InvalidConfig: `config.std` has neither one number nor A of them.
    """

    def __init__(
        self,
        config: PlannerConfig,
        action_dim: int,
        seed: int,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(config.std) not in (1, action_dim):
            raise InvalidConfig(f"std={config.std}: must be one number or {action_dim}, one an action dimension")
        self.config, self.device = config, torch.device(device)
        self._zeros = torch.zeros(config.horizon, action_dim, dtype=dtype, device=self.device)
        self._std = self._zeros + torch.tensor(config.std, dtype=dtype, device=self.device)  # (H, A)
        self._generator = torch.Generator(self.device).manual_seed(seed)
        self.reset()

    def reset(self) -> None:
        """An episode begins: forget the last plan. The random numbers go on."""
        self._mean = self._zeros  # (H, A), of the last plan, not yet shifted
        self._kept = self._zeros[None][:0]  # (K, H, A), likewise

    @torch.no_grad()
    def plan(self, score: Score, proposals: Tensor | None = None) -> Plan:
        """Find actions of a high score.

        Args:
            score: actions (n, H, A) in [-1, 1] -> (n,), higher is better. A candidate whose score is not finite is
                never an elite. Called once an iteration with n = N, and once with n = 1 if the answer is a mean.
            proposals: (P, H, A) of a policy, taken in as candidates; clipped to [-1, 1].
        Returns:
            The plan. Its metrics: `best`, the highest score seen; `std`, the mean of the last one; `unscored`, the
            share of candidates without a finite score; `blind_iterations`, those in which no candidate had one, so
            that mean and std stayed. If all were blind, the answer is the warm start.
        Raises:
            ValueError: more proposals than `samples` has room for.
        """
        config = self.config
        given = self._zeros[None][:0] if proposals is None else proposals.to(self._zeros)
        if 1 + config.kept + len(given) > config.samples:
            room = config.samples - config.kept - 1
            raise ValueError(f"{len(given)} proposals, but samples={config.samples} has room for {room} of them")
        mean, kept, std = self._shift(self._mean), self._shift(self._kept), self._std
        elites: Elites | None = None
        best: tuple[Tensor, float] = (mean, math.nan)
        unscored = blind = 0
        for iteration in range(config.iterations):
            if iteration and not config.proposals_always:
                given = given[:0]
            actions = self._candidates(mean, std, torch.cat([kept, given]))  # (N, H, A)
            scores = score(actions).to(mean)  # (N,)
            assert scores.shape == actions.shape[:1], f"{len(actions)} candidates, but scores {tuple(scores.shape)}"
            unscored += int((~scores.isfinite()).sum())
            found = select_elites(actions, scores, config.elites, config.weight_scale)
            if not len(found.scores):
                blind += 1
                continue
            elites, kept = found, found.actions[: config.kept]
            if not found.scores[0] <= best[1]:  # also if there is none yet
                best = found.actions[0], float(found.scores[0])
            mean, std = refit(found, mean, std, config)

        answer, promised = (mean, math.nan) if elites is None else self._answer(score, mean, elites, best)
        self._mean, self._kept = answer if config.carry == "answer" else mean, kept
        metrics = {
            "best": best[1],
            "std": float(std.mean()),
            "unscored": unscored / (config.samples * config.iterations),
            "blind_iterations": float(blind),
        }
        return Plan(answer, promised, scores, metrics)

    def _candidates(self, mean: Tensor, std: Tensor, given: Tensor) -> Tensor:
        """(N, H, A): the mean, what is given (n, H, A), and the rest drawn around the mean; clipped to [-1, 1]."""
        config = self.config
        if config.std_within_bounds:
            std = torch.minimum(std, (1 - mean.abs()) / 2)
        # All N are drawn, so that the random numbers to come do not depend on how many are given.
        white = torch.randn(
            config.samples, *mean.shape, generator=self._generator, dtype=mean.dtype, device=self.device
        )
        drawn = mean + time_noise(white, std, config.noise, config.noise_parameter)
        return torch.cat([mean[None], given, drawn[1 + len(given) :]]).clamp(-1, 1)

    def _answer(self, score: Score, mean: Tensor, elites: Elites, best: tuple[Tensor, float]) -> tuple[Tensor, float]:
        """The plan (H, A) and its score."""
        if self.config.answer == "mean":  # not a candidate so far
            return mean, float(score(mean[None])[0])
        if self.config.answer == "best_seen":
            return best
        i = 0
        if self.config.answer == "drawn":
            i = int(torch.multinomial(elites.weights, 1, generator=self._generator))
        return elites.actions[i], float(elites.scores[i])

    def _shift(self, plans: Tensor) -> Tensor:
        """Plans (..., H, A) without the actions that were taken; `fill` says what comes at the end."""
        done = self.config.execute
        last = plans[..., -1:, :] if self.config.fill == "repeat" else torch.zeros_like(plans[..., -1:, :])
        return torch.cat([plans[..., done:, :], *[last] * done], dim=-2)

    def state(self) -> dict[str, Any]:
        """Random state and warm start: what continuing bit for bit needs. Survives a `weights_only` load."""
        return {"generator": self._generator.get_state(), "mean": self._mean, "kept": self._kept}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state()` returned on a device of the same kind.

        Raises:
            StateMismatch: it belongs to a planner of another horizon or action size.
        """
        if state["mean"].shape != self._zeros.shape:
            theirs, ours = tuple(state["mean"].shape), tuple(self._zeros.shape)
            raise StateMismatch(f"the saved plan is (horizon, action) {theirs}, this planner's {ours}")
        self._generator.set_state(state["generator"].cpu())
        self._mean = state["mean"].to(self._zeros)
        self._kept = state["kept"].to(self._zeros)

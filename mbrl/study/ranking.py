"""What could a planner gain on a run? Candidates of its policy, ranked by the model, by the critic and by the truth.

From moments of the policy's own episodes, before any success, it proposes candidates: what it would do itself, and that
with noise. The simulator tells what each is worth: its first decisions are taken, then the policy goes on. A planner
gains by a score that has the rank of that worth, and loses by one that has not.

Letters: N candidates, H decisions dreamt, K frames given, A action.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents import DrQv2
from agents.planner import time_noise
from agents.seeding import substreams
from envs.wrappers import Snapshot
from mbrl.build import make_env
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import UserError
from mbrl.interop.trained import open_run, world_of_run
from mbrl.rollout import to_float, to_uint8
from mbrl.study.distances import ranks
from world_model import Dream, WorldModel, imagine
from world_model.metrics import correlation

NOISE = (0.0, *[0.1] * 5, *[0.4] * 6)  # deviation of each candidate's, in action units, coloured in time as iCEM's
AHEAD = (5, 10, 16)  # decisions, the last of which is H
TAKEN, AFTER = 5, 25  # decisions of a candidate that are taken, and of the policy after it
FIRST, EVERY, LAST = 8, 12, 44  # decisions of an episode from which candidates begin

Array = NDArray[np.float64]


class Moment(NamedTuple):
    """Candidates of one moment, dreamt and true. Sums are discounted."""

    scores: dict[str, Array]  # (N,) each, by the name of who gives them
    earned: Array  # (N,), what followed
    success: Array  # (N,), 1.0 where it followed


class Ranking:
    """Raises UserError: the run has no weights, no policy beside its world model, or no world model to dream in."""

    def __init__(self, run: str, device: torch.device) -> None:
        trained = open_run(run, device=device.type)
        self.settings, self.policy, self.device = trained.settings, trained.policy, device
        policy = trained.policy
        if not isinstance(policy.agent, DrQv2):
            raise UserError(f"run={run}: agent={self.settings.agent} has no actor and critic beside a world model")
        self.value = policy.agent.value
        self.env = make_env(self.settings)
        found = world_of_run(policy.folder, policy.checkpoint, self.settings, self.env, device)
        if found is None or self.settings.world_model.kind == "simulator":
            raise UserError(f"run={run}: it has left no world model to dream in")
        self.world: WorldModel = found[0]

    @torch.no_grad()
    def moments(self, seed: int) -> Iterator[Moment]:
        """Of one episode, until it succeeds or ends."""
        env, generator = self.env, torch.Generator().manual_seed(substreams(seed, 1)[0])
        obs, _ = env.reset(seed=seed)
        for decision in range(LAST + 1):
            if decision >= FIRST and (decision - FIRST) % EVERY == 0:
                now = env.snapshot()
                yield self.moment(now, obs, generator)
                env.restore(now)
            obs, _, terminated, truncated, info = env.step(self.policy.act(obs))
            if terminated or truncated or info["success"]:
                return

    def moment(self, now: Snapshot, obs: NDArray[np.uint8], generator: torch.Generator) -> Moment:
        given = to_float(torch.from_numpy(obs).unflatten(0, (-1, 3)).to(self.device))  # (K, 3, height, width)
        given = given.expand(len(NOISE), -1, -1, -1, -1)
        dream = self.dream(given, generator)
        actions, dreamt = dream.actions.cpu(), dream.heads["reward"].double().cpu().numpy()
        stack, horizon = given.shape[1], AHEAD[-1]
        true, seen = self.play(now, actions)  # (N, H), (N, H, 3, height, width)
        shown = torch.cat([given, to_float(torch.from_numpy(seen).to(self.device))], dim=1)
        followed = [self.follow(now, candidate) for candidate in actions]
        weights = self.settings.discount ** np.arange(horizon)

        def ends(images: Tensor) -> Array:  # of the first TAKEN decisions, (N,)
            return self.value(to_uint8(images[:, TAKEN : TAKEN + stack]).flatten(1, 2)).double().cpu().numpy()

        scores = {}
        dreams = torch.cat([given, dream.frames], dim=1)
        for name, rewards, images in (("dreamt", dreamt, dreams), ("true", true, shown)):
            for ahead in AHEAD:
                scores[f"{name} rewards, {ahead} ahead"] = (rewards * weights)[:, :ahead].sum(1)
            value = self.settings.discount**TAKEN * ends(images)
            scores[f"{name} rewards, {TAKEN} ahead, then the critic"] = (rewards * weights)[:, :TAKEN].sum(1) + value
        single = self.single_steps(shown, actions)
        scores[f"rewards of single steps from true frames, {horizon} ahead"] = (single * weights).sum(1)
        return Moment(scores, np.array([earned for earned, _ in followed]), np.array([happy for _, happy in followed]))

    def dream(self, given: Tensor, generator: torch.Generator) -> Dream:
        """The policy acts in N dreams, with the candidates' noise."""
        deviation = torch.tensor(NOISE)[:, None, None].expand(-1, AHEAD[-1], self.env.action_space.shape[0])
        noise = time_noise(torch.randn(deviation.shape, generator=generator), deviation, "coloured", 2.0)
        decisions = iter(noise.unbind(1))

        def explore(frames: Tensor) -> Tensor:
            seen = to_uint8(frames[:, -given.shape[1] :]).flatten(1, 2)
            return (torch.from_numpy(self.policy.act(seen)) + next(decisions)).clamp(-1, 1).to(self.device)

        return imagine(self.world, given, explore, AHEAD[-1], temperature=0.0)

    def single_steps(self, shown: Tensor, actions: Tensor) -> Array:
        """Rewards (N, H) dreamt one decision ahead, each from true frames (N, K + H, 3, ...)."""
        stack, found = shown.shape[1] - actions.shape[1], []
        for h in range(actions.shape[1]):
            rollout = self.world.start(shown[:, h : h + stack], temperature=0.0, horizon=1)
            found.append(rollout.step(actions[:, h].to(self.device)).heads["reward"].double().cpu())
        return torch.stack(found, dim=1).numpy()

    def play(self, now: Snapshot, actions: Tensor) -> tuple[Array, NDArray[np.uint8]]:
        """True rewards (N, H) and frames (N, H, 3, height, width); an episode that ends earns nothing more."""
        rewards, frames = np.zeros(actions.shape[:2]), list[list[NDArray[np.uint8]]]()
        for i, candidate in enumerate(actions):
            obs, over = self.env.restore(now), False
            frames.append([])
            for h, action in enumerate(candidate):
                if not over:
                    obs, rewards[i, h], terminated, truncated, _ = self.env.step(action.numpy())
                    over = terminated or truncated
                frames[-1].append(obs[-3:])
        return rewards, np.array(frames)

    def follow(self, now: Snapshot, candidate: Tensor) -> tuple[float, float]:
        """First decisions of a candidate (H, A), then the policy goes on: return, and whether it succeeds."""
        obs, earned, happy = self.env.restore(now), 0.0, 0.0
        for h in range(TAKEN + AFTER):
            action = candidate[h].numpy() if h < TAKEN else self.policy.act(obs)
            obs, reward, terminated, truncated, info = self.env.step(action)
            earned += self.settings.discount**h * reward
            happy = max(happy, info["success"])
            if terminated or truncated:
                break
        return earned, happy


def measure(run: str, episodes: int, seed: int, device: torch.device) -> list[dict[str, Any]]:
    """A row for each score: its rank correlation with what followed, and what its choice earned; means over moments."""
    ranking = Ranking(run, device)
    found: list[Moment] = []
    for number in progress_bar(range(episodes), unit="episode"):
        found += ranking.moments(stream_seed(seed, "ranking", number))
    ranking.env.close()
    if not found:
        raise UserError(
            f"run={run}: every episode succeeded or ended within {FIRST} decisions, so nothing is left to plan"
        )

    def row(name: str, moments: list[tuple[float, float, float]]) -> dict[str, Any]:
        agreement, earned, happy = np.array(moments).T
        known = agreement[np.isfinite(agreement)]
        return {
            "chosen by": name,
            "moments": len(moments),
            "rank correlation": float(known.mean()) if len(known) else None,
            "return of the choice": float(earned.mean()),
            "success of the choice": float(happy.mean()),
        }

    def choice(moment: Moment, score: Array) -> tuple[float, float, float]:
        best = int(score.argmax())
        return agreement(score, moment.earned), moment.earned[best], moment.success[best]

    rows = [
        row("the policy: its own", [(np.nan, m.earned[0], m.success[0]) for m in found]),
        row("chance", [(np.nan, m.earned.mean(), m.success.mean()) for m in found]),
    ]
    rows += [row(name, [choice(m, m.scores[name]) for m in found]) for name in found[0].scores]
    return [*rows, row("what followed: the ceiling", [choice(m, m.earned) for m in found])]


def agreement(score: Array, earned: Array) -> float:
    """Spearman's correlation; nan where either does not change."""
    return correlation(torch.from_numpy(ranks(score)), torch.from_numpy(ranks(earned)))

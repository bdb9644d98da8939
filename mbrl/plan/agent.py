"""An agent that acts by planning in a world model: model-predictive control.

    agent = PlanningAgent(settings.planning, action_dim, seed, device)
    plan_for_rewards(agent, world, discount=0.99)

Every `execute` decisions it dreams candidates from what it sees, and takes the first actions of the best. A policy, if
there is one, proposes some of the candidates: what it would do itself, and that with its exploration noise.

Letters: K frames given, P proposals, H horizon, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from agents import Agent, DrQv2, Plan, Planner, PlannerConfig
from agents.seeding import substreams
from mbrl.experiment.settings import UserError
from mbrl.plan.scores import MAX_ROWS, Measure, Score, rewards, score
from mbrl.rollout import to_float, to_uint8
from mbrl.world.simulator import SimulatorWorld
from world_model import WorldModel
from world_model.api import Rollout

Control = Literal["none", "shuffled"]


class Planned(NamedTuple):
    """A plan and where it begins."""

    start: Rollout  # of one row; can still go on
    plan: Plan


class PlanningAgent:
    """An `agents.Agent` without weights, for one environment (B = 1).

    Training and evaluation have planners of their own. `start`, `measure` and `policy` are for its owner to set.

    Args:
        stddev: of the noise on its actions while it trains.
        control: "shuffled" hands every score to another candidate, drawn at random, which leaves the planner's noise.
        max_rows: see `mbrl.plan.scores.score`.
    """

    start: Callable[[Tensor], Rollout]  # frames (1, K, 3, H, W) in [0, 1] -> a dream from there
    measure: Measure
    policy: Agent | None = None  # proposes candidates; it has no memory

    def __init__(
        self,
        config: PlannerConfig,
        action_dim: int,
        seed: int,
        device: torch.device | str,
        *,
        stddev: float = 0.0,
        control: Control = "none",
        max_rows: int = MAX_ROWS,
    ) -> None:
        seeds = substreams(seed, 4)
        self.config, self.stddev, self.control = config, stddev, control
        self.max_rows = max_rows
        self.latest: Planned | None = None  # of the episode under way
        self._planners = {mode: Planner(config, action_dim, seeds[mode], device) for mode in (False, True)}
        self._queues: dict[bool, list[Tensor]] = {False: [], True: []}
        self._noise = torch.Generator(device).manual_seed(seeds[2])
        self._shuffling = torch.Generator(device).manual_seed(seeds[3])

    def begin_episode(self, eval_mode: bool) -> None:
        self._planners[eval_mode].reset()
        self._queues[eval_mode] = []
        self.latest = None

    @torch.no_grad()
    def act(self, obs: Tensor, decision: int, eval_mode: bool) -> Tensor:
        """Actions float32 (1, A) in [-1, 1] for obs uint8 (1, C, H, W), stacked frames."""
        assert len(obs) == 1, f"it plans for one environment, not for {len(obs)}"
        queue = self._queues[eval_mode]
        if not queue:
            start = self.start(to_float(obs.unflatten(1, (-1, 3))))
            proposals = self._propose(start, decision)
            plan = self._planners[eval_mode].plan(self._control(score(start, self.measure, self.max_rows)), proposals)
            self.latest = Planned(start, plan)
            queue += plan.actions[: self.config.execute].split(1)
        action = queue.pop(0)
        if not eval_mode and self.stddev:
            noise = torch.randn(action.shape, generator=self._noise, device=action.device)
            action = (action + self.stddev * noise).clamp(-1, 1)
        return action

    def _propose(self, start: Rollout, decision: int) -> Tensor | None:
        """(P, H, A): the policy acts in the dream; in the first row as it is, in the others exploring."""
        count, stack = self.config.proposals, start.frames.shape[1]
        if self.policy is None or not count:
            return None
        rollout, actions = start.expand(count), []
        for _ in range(self.config.horizon):
            seen = to_uint8(rollout.frames[:, -stack:]).flatten(1, 2)
            taken = self.policy.act(seen, decision, eval_mode=True).float()
            if count > 1:
                exploring = self.policy.act(seen[1:], decision, eval_mode=False).float()
                taken = torch.cat([taken[:1], exploring])
            actions.append(taken)
            rollout.step(taken)
        return torch.stack(actions, dim=1)

    def _control(self, scores: Score) -> Score:
        if self.control == "none":
            return scores

        def shuffled(actions: Tensor) -> Tensor:
            right = scores(actions)
            return right[torch.randperm(len(right), generator=self._shuffling, device=right.device)]

        return shuffled

    def update(self, batch: Any, decision: int) -> dict[str, Tensor]:
        """It learns nothing itself."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """It has none."""
        return {}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Nothing to take over."""

    def state(self) -> dict[str, Any]:
        """Between episodes: both planners and the noise."""
        return {
            "training": self._planners[False].state(),
            "evaluation": self._planners[True].state(),
            "noise": self._noise.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state()` returned."""
        self._planners[False].load_state(state["training"])
        self._planners[True].load_state(state["evaluation"])
        self._noise.set_state(state["noise"].cpu())


def plan_for_rewards(agent: PlanningAgent, world: WorldModel, discount: float, policy: DrQv2 | None = None) -> None:
    """Let `agent` plan in `world` for the rewards that its head predicts and, with a policy, its critic's value after.

    Raises:
        UserError: frames are not all that the world model begins from.
    """
    if isinstance(world, SimulatorWorld):
        raise UserError("world_model.kind=simulator cannot be planned in here: `make plan MODEL=simulator` can")

    def value(frames: Tensor) -> Tensor:  # (n, S, 3, H, W) in [0, 1] -> (n,)
        assert policy is not None
        return policy.value(to_uint8(frames).flatten(1, 2))

    # The likeliest future, so that candidates are compared and not their luck.
    agent.start = lambda frames: world.start(frames, temperature=0.0, horizon=agent.config.horizon)
    stack = policy.obs_shape[0] // 3 if policy else 0
    agent.measure = rewards(discount, value if policy else None, stack)
    agent.policy = policy

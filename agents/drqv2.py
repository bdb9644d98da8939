"""DrQ-v2: an actor-critic that learns continuous control from pixels with little more than random shifts.

Yarats, Fergus, Lazaric, Pinto: "Mastering Visual Continuous Control: Improved Data-Augmented Reinforcement
Learning" (2021), arXiv 2107.09645. DDPG with n-step returns, clipped double Q-learning, exploration noise on
a schedule, and one encoder that only the critic trains. With `encoder="drqv2"`, `precision="fp32"`,
`random_shift=4` and all that follows turned off this is the published algorithm at 64x64. Optional are

- `encoder="quarter"` and `"strided"`: cheaper encoders for machines without a GPU;
- `precision="bf16"`: matrix products in bfloat16; losses, targets and the last layers stay in float32;
- behaviour cloning (bc) on demonstrations: `bc_updates` of it before the first frame (see `clone`), and beside the
  reinforcement learning with a weight that follows `bc_schedule` (see `update`);
- `anchor_schedule`: the actor is held near a frozen copy of the cloned policy in every state of the batch, so that
  it leaves what it was taught only as fast as the critic learns (see `update`);
- `ibrl`: imitation bootstrapped reinforcement learning (Hu et al. 2023, arXiv 2311.02198, algorithm 1): a frozen
  copy of the cloned policy proposes an action too, and the better of the two is taken (see `_better`);
- `layer_norm` in the critic's MLPs;
- `reward_scale`: the critic learns scaled returns. At Adam's fixed pace it takes thousands of updates to reach values
  of some hundreds, and meanwhile its errors drown all else that shapes the encoder;
- `saturation_penalty`: keeps an actor that does not begin as a clone out of the corners of the action space, where tanh
  has no gradient left to lead it away again (see `update`);
- `actor_average`: evaluation acts with an exponential average of the weights of encoder and actor.

    agent = DrQv2(obs_shape=(9, 64, 64), action_dim=4, config=config, device="cpu", seed=1)
    agent.demonstrations = sampler                         # for behaviour cloning
    for metrics in agent.clone(): ...
    action = agent.act(obs, decision, eval_mode=False)     # (B, A)
    metrics = agent.update(batch, decision)                # flat dict of detached scalars

Letters: B batch, D demonstration batch, C stacked channels, H W image, A action, F encoder features.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.api import InvalidConfig, TransitionBatch
from agents.networks import ENCODERS, Actor, Critic, Encoder, orthogonal_init, random_shift
from agents.saving import flat_weights, load_flat_weights
from agents.schedules import parse_schedule, value_range
from agents.seeding import substreams

PRECISIONS = ("auto", "fp32", "bf16")
STEEP, FLAT = 2.0, 3.0  # outputs before tanh: behind it 0.964 and 0.995, where its slope is 0.07 and 0.01
TARGET_CRITIC = "critic_target"  # its name among the weights


@dataclasses.dataclass(frozen=True)
class DrQv2Config:
    """Settings of the agent; their values live in `configs/`, where ranges are checked. Schedules count decisions.

    Raises:
        InvalidConfig: a name or a schedule that cannot be used.
    """

    encoder: str  # a key of ENCODERS
    feature_dim: Annotated[int, "[1, inf)"]
    hidden_dim: Annotated[int, "[1, inf)"]
    lr: Annotated[float, "(0, inf)"]
    critic_target_tau: Annotated[float, "(0, 1]"]
    stddev_schedule: str  # exploration noise, e.g. "linear(1.0,0.1,100000)"
    stddev_clip: Annotated[float, "(0, inf)"]
    bc_updates: Annotated[int, "[0, 100000000]"]
    bc_stddev_schedule: str
    bc_schedule: str  # weight of behaviour cloning in `update`, e.g. "linear(1.0,0.0,8000)"; "0" turns it off
    bc_batch_size: Annotated[int, "[1, inf)"]  # demonstrated transitions of one such loss
    anchor_schedule: str  # weight in `update` of staying near the frozen clone's action; "0" turns it off
    ibrl: bool  # take the better of the actor's and the frozen clone's action
    random_shift: Annotated[int, "[0, 32]"]  # pixels in each direction, of every image that is learned from
    layer_norm: bool  # in the critic's MLPs
    saturation_penalty: Annotated[float, "[0, inf)"]  # weight of leaving tanh's steep part, unless it begins as a clone
    reward_scale: Annotated[float, "(0, inf)"]  # what the critic learns are returns times this
    # decay an update of the averaged weights that evaluation acts with; 0 turns it off
    actor_average: Annotated[float, "[0, 1)"]
    precision: str  # fp32 or bf16; whoever builds the agent decides what "auto" is

    def __post_init__(self) -> None:
        for name, known in (("encoder", ENCODERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InvalidConfig(f"{name}={getattr(self, name)!r} is unknown: choose {' or '.join(known)}")
        for name in ("stddev_schedule", "bc_stddev_schedule", "bc_schedule", "anchor_schedule"):
            if value_range(getattr(self, name))[0] < 0:
                raise InvalidConfig(f"{name}={getattr(self, name)!r} must not be negative")
        for name, wanted in (("ibrl", self.ibrl), ("anchor_schedule", value_range(self.anchor_schedule)[1] > 0)):
            if wanted and not self.bc_updates:
                raise InvalidConfig(f"{name} needs a cloned policy: set bc_updates above 0")


class Policy(nn.Module):
    """A copy of encoder and actor that no loss trains: obs (B, C, H, W) -> mean action (B, A)."""

    def __init__(self, encoder: Encoder, actor: Actor) -> None:
        super().__init__()
        self.encoder, self.actor = copy.deepcopy(encoder), copy.deepcopy(actor)
        self.requires_grad_(False)

    def forward(self, obs: Tensor) -> Tensor:
        return self.actor(self.encoder(obs))

    @torch.no_grad()
    def follow(self, encoder: Encoder, actor: Actor, rate: float) -> None:
        """Moves the weights by `rate` of the way to those of `encoder` and `actor`; 1 takes them over."""
        torch._foreach_lerp_(list(self.parameters()), [*encoder.parameters(), *actor.parameters()], rate)


class DrQv2:
    """The agent (see the module's docstring).

    Args:
        obs_shape: (C, H, W) of the stacked uint8 images.
        action_dim: A.
        config: the settings.
        device: where the networks live.
        seed: of everything random in the agent, the initial weights included.
    """

    def __init__(
        self,
        obs_shape: tuple[int, int, int],
        action_dim: int,
        config: DrQv2Config,
        device: torch.device | str,
        seed: int,
    ) -> None:
        self.obs_shape, self.action_dim, self.config = obs_shape, action_dim, config
        self.device = torch.device(device)
        # Full noise would drown a clone.
        self._stddev = parse_schedule(config.bc_stddev_schedule if config.bc_updates else config.stddev_schedule)
        self._bc_weight = parse_schedule(config.bc_schedule)
        self._anchor_weight = parse_schedule(config.anchor_schedule)
        self._saturation_penalty = 0.0 if config.bc_updates else config.saturation_penalty
        if config.precision == "auto":
            raise InvalidConfig("precision=auto is decided by whoever builds the agent: give it fp32 or bf16")
        self._bf16 = config.precision == "bf16"
        weights_seed, noise_seed = substreams(seed, 2)

        sizes = (action_dim, config.feature_dim, config.hidden_dim)
        with torch.device("meta"):  # so that no layer draws from the global random state
            self.encoder = Encoder(self.obs_shape, config.encoder)
            self.actor = Actor(self.encoder.repr_dim, *sizes)
            self.critic = Critic(self.encoder.repr_dim, *sizes, config.layer_norm)
            self.critic_target = Critic(self.encoder.repr_dim, *sizes, config.layer_norm)
        self.demonstrations: Callable[[int], TransitionBatch] | None = None  # draws so many of them
        self.cloned: Policy | None = None
        self.average: Policy | None = None
        # Drawn on the CPU, so that a seed means the same weights on every device.
        weights_generator = torch.Generator().manual_seed(weights_seed)
        for network in self._networks().values():
            network.to_empty(device="cpu")
            orthogonal_init(network, weights_generator)
            network.to(self.device)
        # The layout in which convolutions are fastest in bfloat16, on CPUs and GPUs alike.
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)
        if config.ibrl or value_range(config.anchor_schedule)[1] > 0:
            self.cloned = Policy(self.encoder, self.actor)
        if config.actor_average:
            self.average = Policy(self.encoder, self.actor)

        # The critic's loss trains the encoder too; DrQ-v2 does the same with two optimizers.
        critic_parameters = [*self.encoder.parameters(), *self.critic.parameters()]
        self._critic_optimizer = torch.optim.Adam(critic_parameters, lr=config.lr, fused=True)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.lr, fused=True)
        self._generator = torch.Generator(self.device).manual_seed(noise_seed)

    def begin_episode(self, eval_mode: bool) -> None:
        """Nothing: it is stateless."""

    @torch.no_grad()
    def act(self, obs: Tensor, decision: int, eval_mode: bool) -> Tensor:
        """Actions float32 (B, A) in [-1, 1] for obs uint8 (B, C, H, W); with `eval_mode` without noise."""
        assert obs.dtype == torch.uint8, f"obs must be uint8 images, not {obs.dtype}"
        assert obs.shape[1:] == self.obs_shape, f"obs {tuple(obs.shape)} are not (B, *{self.obs_shape})"
        obs = obs.to(self.device)
        with self._autocast():
            features = self.encoder(obs)
            mean = self.average(obs) if eval_mode and self.average is not None else self.actor(features)
            action = mean if eval_mode else self._explore(mean, self._stddev(decision), clip=math.inf)
            if self.cloned is not None and self.config.ibrl:
                action, _ = self._better(features, action, self.cloned(obs))
        return action

    @torch.no_grad()
    def value(self, obs: Tensor) -> Tensor:
        """The smaller Q of the actor's mean action, in units of reward, float32 (B,), for obs uint8 (B, C, H, W)."""
        with self._autocast():
            features = self.encoder(obs.to(self.device))
            value = torch.min(*self.critic(features, self.actor(features))).squeeze(1).float()
        return value / self.config.reward_scale

    def clone(self) -> Iterator[dict[str, Tensor]]:
        """`bc_updates` steps of behaviour cloning of encoder and actor; the optimizers of `update` know nothing of it.

        Yields:
            `bc_loss` of each step, a detached scalar on the device.
        """
        parameters = [*self.encoder.parameters(), *self.actor.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.config.lr, fused=True)
        for _ in range(self.config.bc_updates):
            loss = self._bc_loss()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            yield {"bc_loss": loss.detach()}
        for policy in (self.cloned, self.average):
            if policy is not None:
                policy.follow(self.encoder, self.actor, rate=1.0)

    def update(self, batch: TransitionBatch, decision: int) -> dict[str, Tensor]:
        """One step of critic, encoder, actor and target.

        While `bc_schedule` is above zero and there are `demonstrations`, the actor is also pulled towards the
        demonstrated actions, and while `anchor_schedule` is, towards those of the frozen clone. With a
        `saturation_penalty` an actor that did not begin as a clone pays for outputs beyond ±`STEEP` before tanh:
        while the critic knows little, its gradient has one sign in all states, which drives every output into the
        flat part of tanh within some hundred updates, to stay there. Otherwise the step is plain DrQ-v2, to the
        last bit.

        Returns:
            `critic_loss`, `actor_loss` and, with behaviour cloning, `bc_loss`: a non-finite one means that
            training has failed. The rest are metrics to log. All are detached scalars on the device.
        """
        batch = batch.to(self.device)
        stddev = self._stddev(decision)
        bc_weight, anchor_weight = self._bc_weight(decision), self._anchor_weight(decision)

        obs, next_obs = self._augment(batch.obs), self._augment(batch.next_obs)
        target_q, metrics = self._target_q(batch, next_obs, stddev)  # (B, 1)

        with self._autocast():
            features = self.encoder(obs)  # (B, F)
            q1, q2 = self.critic(features, batch.action)
        critic_loss = F.mse_loss(q1, target_q) + F.mse_loss(q2, target_q)
        metrics |= {
            "batch_reward": batch.reward.mean(),
            "critic_target_q": target_q.mean(),
            "critic_q1": q1.mean(),
            "critic_q2": q2.mean(),
            "critic_loss": critic_loss,
        }
        self._critic_optimizer.zero_grad(set_to_none=True)
        self._actor_optimizer.zero_grad(set_to_none=True)
        critic_loss.backward()
        if self.demonstrations is not None and bc_weight > 0:
            metrics |= self._add_bc_gradient(bc_weight, target_q)
        self._critic_optimizer.step()

        features = features.detach()
        with self._autocast():
            outputs = self.actor.before_tanh(features)  # (B, A)
            mean = torch.tanh(outputs)
            action = self._explore(mean, stddev, self.config.stddev_clip)
            q = torch.min(*self.critic(features, action))
        actor_loss = -q.mean()
        metrics["actor_saturated"] = (outputs.abs() > FLAT).float().mean()
        if self._saturation_penalty:
            beyond = F.relu(outputs.abs() - STEEP).square().mean()
            actor_loss = actor_loss + self._saturation_penalty * _magnitude(target_q) * beyond
        if self.cloned is not None and anchor_weight > 0:
            with self._autocast():
                metrics["anchor_distance"] = F.mse_loss(mean, self.cloned(obs))
            actor_loss = actor_loss + anchor_weight * _magnitude(target_q) * metrics["anchor_distance"]
        # Only the actor's gradients are worked out; they add to those that behaviour cloning has left there.
        actor_loss.backward(inputs=list(self.actor.parameters()))
        self._actor_optimizer.step()
        metrics["actor_loss"] = actor_loss

        with torch.no_grad():
            tau = self.config.critic_target_tau
            torch._foreach_lerp_(list(self.critic_target.parameters()), list(self.critic.parameters()), tau)
        if self.average is not None:
            self.average.follow(self.encoder, self.actor, rate=1 - self.config.actor_average)
        return {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def _target_q(self, batch: TransitionBatch, next_obs: Tensor, stddev: float) -> tuple[Tensor, dict[str, Tensor]]:
        """What the critic learns, (B, 1), and metrics."""
        metrics = {}
        with self._autocast():
            features = self.encoder(next_obs)
            action = self._explore(self.actor(features), stddev, self.config.stddev_clip)
            if self.cloned is not None and self.config.ibrl:
                cloned = self.cloned(next_obs)
                action, value = self._better(features, action, cloned)
                metrics["ibrl_clone_share"] = (action == cloned).all(1).float().mean()
            else:
                value = torch.min(*self.critic_target(features, action))
        return self.config.reward_scale * batch.reward + batch.discount * value, metrics

    def _better(self, features: Tensor, action: Tensor, cloned: Tensor) -> tuple[Tensor, Tensor]:
        """IBRL: of two actions (B, A) the one of higher target Q at features (B, F), and that Q (B, 1)."""
        ours = torch.min(*self.critic_target(features, action))
        theirs = torch.min(*self.critic_target(features, cloned))
        return torch.where(theirs > ours, cloned, action), torch.max(ours, theirs)

    def _bc_loss(self) -> Tensor:
        """Mean squared error between the mean and the demonstrated action, on a fresh batch."""
        assert self.demonstrations is not None, "behaviour cloning needs demonstrations"
        batch = self.demonstrations(self.config.bc_batch_size).to(self.device)
        with self._autocast():
            mean = self.actor(self.encoder(self._augment(batch.obs)))  # (D, A)
        return F.mse_loss(mean, batch.action)

    def _add_bc_gradient(self, weight: float, target_q: Tensor) -> dict[str, Tensor]:
        """Adds the gradient of weight * |Q| * MSE(mean, demonstrated action) to actor and encoder.

        |Q| is the mean magnitude of the critic's targets (never taken below 1). Without it a weight would
        mean nothing: with the success bonus Q goes from 0 to some hundreds within a thousand updates, and
        cloning would be drowned just when it is needed. It is TD3+BC's normalisation (Fujimoto & Gu 2021,
        eq. 5) moved to the other term, so that a weight of zero leaves DrQ-v2's own loss.

        The gradient reaches the encoder on purpose. In the first thousands of frames the critic's targets say
        little about where the hand and the object are, while a demonstrated action depends on just that.
        """
        bc_loss = self._bc_loss()
        (weight * _magnitude(target_q) * bc_loss).backward()
        return {"bc_loss": bc_loss, "bc_weight": bc_loss.new_full((), weight)}

    def _explore(self, mean: Tensor, stddev: float, clip: float) -> Tensor:
        """Mean plus clipped Gaussian noise, kept in [-1, 1]; the gradient passes as if nothing were cut."""
        noise = torch.randn(mean.shape, generator=self._generator, device=mean.device) * stddev
        action = mean + noise.clamp(-clip, clip)
        inside = action.detach().clamp(-1 + 1e-6, 1 - 1e-6)
        return action + (inside - action.detach())

    def _augment(self, obs: Tensor) -> Tensor:
        pad = self.config.random_shift
        shifts = torch.randint(0, 2 * pad + 1, (len(obs), 2), generator=self._generator, device=obs.device)
        return random_shift(obs, shifts, pad)

    def _autocast(self) -> torch.autocast:
        # No cache: it would hand weights that were cast without gradients, or before a step, to a later pass.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False)

    def _networks(self) -> dict[str, nn.Module]:
        networks: dict[str, nn.Module | None] = {
            "encoder": self.encoder,
            "actor": self.actor,
            "critic": self.critic,
            TARGET_CRITIC: self.critic_target,
            "cloned": self.cloned,
            "average": self.average,
        }
        return {name: network for name, network in networks.items() if network is not None}

    def weights(self) -> dict[str, Tensor]:
        """Every weight under one flat name, `critic.Q1.output.bias` say (for safetensors)."""
        return flat_weights(self._networks())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes over what `weights()` returned; without a target critic, as of a published run, the critic is it.

        Raises StateMismatch: the weights belong to an agent of other sizes.
        """
        critic = {name.removeprefix("critic"): w for name, w in weights.items() if name.startswith("critic.")}
        load_flat_weights(self._networks(), {TARGET_CRITIC + name: w for name, w in critic.items()} | weights)

    def state(self) -> dict[str, Any]:
        """Optimizers and random state, for `torch.save` and a load with `weights_only=True`.

        As with torch's own `state_dict`, the tensors are the living ones: save them before the next update.
        """
        return {
            "critic_optimizer": self._critic_optimizer.state_dict(),
            "actor_optimizer": self._actor_optimizer.state_dict(),
            "generator": self._generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """With `load_weights`, continues from `state()`: bit for bit on the CPU."""
        self._critic_optimizer.load_state_dict(state["critic_optimizer"])
        self._actor_optimizer.load_state_dict(state["actor_optimizer"])
        self._generator.set_state(state["generator"].cpu())


def _magnitude(target_q: Tensor) -> Tensor:
    """The scale of a loss that stands beside -Q: the mean |Q| of the critic's targets, never below 1."""
    return target_q.abs().mean().clamp(min=1.0)

"""DrQ-v2: an actor-critic that learns continuous control from pixels with little more than random shifts.

Yarats, Fergus, Lazaric, Pinto: "Mastering Visual Continuous Control: Improved Data-Augmented Reinforcement
Learning" (2021), arXiv 2107.09645. DDPG with n-step returns, clipped double Q-learning, exploration noise on
a schedule, and one encoder that only the critic trains. With `encoder="drqv2"`, `guide_schedule="0"` and
`precision="fp32"` this is the published algorithm at 64x64. Ours and optional are

- `encoder="strided"`: a cheaper encoder for machines without a GPU;
- the *guide*: behaviour cloning on demonstrations, annealed to nothing by `guide_schedule` (see `update`);
- `precision="bf16"`: matrix products in bfloat16; losses, targets and the last layers stay in float32.

    agent = DrQv2(obs_shape=(9, 64, 64), action_dim=4, config=config, device="cpu", seed=1)
    action = agent.act(obs, decision, eval_mode=False)     # (B, A)
    metrics = agent.update(batch, decision)                # flat dict of detached scalars

Letters: B batch, D demonstration batch, C stacked channels, H W picture, A action, F encoder features.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.api import InvalidConfig, TransitionBatch
from agents.networks import ENCODERS, MLP, Encoder, Trunk, orthogonal_init, random_shift
from agents.saving import flat_weights, load_flat_weights
from agents.schedules import lowest_value, parse_schedule

SHIFT = 4  # pixels of random shift in each direction
PRECISIONS = ("auto", "fp32", "bf16")


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
    guide_schedule: str  # weight of behaviour cloning, e.g. "linear(1.0,0.0,8000)"; "0" turns it off
    # demonstration transitions that the loop hands to `update` while the guide is on
    guide_batch_size: Annotated[int, "[1, inf)"]
    precision: str  # "auto": bf16 on a CPU that computes with it, fp32 elsewhere

    def __post_init__(self) -> None:
        for name, known in (("encoder", ENCODERS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InvalidConfig(f"{name}={getattr(self, name)!r} is unknown: choose {' or '.join(known)}")
        for name in ("stddev_schedule", "guide_schedule"):
            if lowest_value(getattr(self, name)) < 0:
                raise InvalidConfig(f"{name}={getattr(self, name)!r} must not be negative")


class Actor(nn.Module):
    """Features (B, F) -> mean action (B, A) in (-1, 1)."""

    def __init__(self, repr_dim: int, action_dim: int, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.trunk = Trunk(repr_dim, feature_dim)
        self.policy = MLP(feature_dim, hidden_dim, action_dim)

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.policy(self.trunk(features)))


class Critic(nn.Module):
    """Features (B, F) and actions (B, A) -> two estimates of Q, each (B, 1)."""

    def __init__(self, repr_dim: int, action_dim: int, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.trunk = Trunk(repr_dim, feature_dim)
        self.Q1 = MLP(feature_dim + action_dim, hidden_dim, 1)
        self.Q2 = MLP(feature_dim + action_dim, hidden_dim, 1)

    def forward(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.cat([self.trunk(features), action], dim=-1)  # (B, feature_dim + A)
        return self.Q1(hidden), self.Q2(hidden)


class DrQv2:
    """The agent (see the module's docstring).

    Args:
        obs_shape: (C, H, W) of the stacked uint8 pictures.
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
        self._stddev = parse_schedule(config.stddev_schedule)
        self._guide_weight = parse_schedule(config.guide_schedule)
        self._bf16 = config.precision == "bf16" or (config.precision == "auto" and _cpu_has_bf16(self.device))

        sizes = (action_dim, config.feature_dim, config.hidden_dim)
        with torch.device("meta"):  # so that no layer draws from the global random state
            self.encoder = Encoder(self.obs_shape, config.encoder)
            self.actor = Actor(self.encoder.repr_dim, *sizes)
            self.critic = Critic(self.encoder.repr_dim, *sizes)
            self.critic_target = Critic(self.encoder.repr_dim, *sizes)
        # Drawn on the CPU, so that a seed means the same weights on every device.
        weights_generator = torch.Generator().manual_seed(seed)
        for network in self._networks().values():
            network.to_empty(device="cpu")
            orthogonal_init(network, weights_generator)
            network.to(self.device)
        # The layout in which convolutions are fastest in bfloat16, on CPUs and GPUs alike.
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)

        # The critic's loss trains the encoder too; DrQ-v2 does the same with two optimizers.
        critic_parameters = [*self.encoder.parameters(), *self.critic.parameters()]
        self._critic_optimizer = torch.optim.Adam(critic_parameters, lr=config.lr, fused=True)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.lr, fused=True)
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def begin_episode(self, eval_mode: bool) -> None:
        """It remembers nothing."""

    @torch.no_grad()
    def act(self, obs: Tensor, decision: int, eval_mode: bool) -> Tensor:
        """Actions float32 (B, A) in [-1, 1] for obs uint8 (B, C, H, W); with `eval_mode` the mean."""
        assert obs.dtype == torch.uint8, f"obs must be uint8 pictures, not {obs.dtype}"
        assert obs.shape[1:] == self.obs_shape, f"obs {tuple(obs.shape)} are not (B, *{self.obs_shape})"
        with self._autocast():
            mean = self.actor(self.encoder(obs.to(self.device)))
        return mean if eval_mode else self._explore(mean, self._stddev(decision), clip=math.inf)

    def update(
        self, batch: TransitionBatch, decision: int, demonstrations: TransitionBatch | None = None
    ) -> dict[str, Tensor]:
        """One step of critic, encoder, actor and target.

        While the guide's weight is above zero and `demonstrations` (any batch size D) is given, the actor is
        also pulled towards the demonstrated actions. Otherwise the step is plain DrQ-v2, to the last bit.

        Returns:
            `critic_loss`, `actor_loss` and, when guided, `guide_loss`: a non-finite one means that training
            has failed. The rest is there to look at. All are detached scalars on the device.
        """
        batch = batch.to(self.device)
        stddev = self._stddev(decision)
        guide_weight = self._guide_weight(decision)

        obs, next_obs = self._augment(batch.obs), self._augment(batch.next_obs)
        with self._autocast(), torch.no_grad():
            next_features = self.encoder(next_obs)
            next_action = self._explore(self.actor(next_features), stddev, self.config.stddev_clip)
            target_v = torch.min(*self.critic_target(next_features, next_action))
            target_q = batch.reward + batch.discount * target_v  # (B, 1)

        with self._autocast():
            features = self.encoder(obs)  # (B, F)
            q1, q2 = self.critic(features, batch.action)
        critic_loss = F.mse_loss(q1, target_q) + F.mse_loss(q2, target_q)
        metrics = {
            "batch_reward": batch.reward.mean(),
            "critic_target_q": target_q.mean(),
            "critic_q1": q1.mean(),
            "critic_q2": q2.mean(),
            "critic_loss": critic_loss,
        }
        self._critic_optimizer.zero_grad(set_to_none=True)
        self._actor_optimizer.zero_grad(set_to_none=True)
        critic_loss.backward()
        if demonstrations is not None and guide_weight > 0:
            metrics |= self._guide(demonstrations.to(self.device), guide_weight, target_q)
        self._critic_optimizer.step()

        features = features.detach()
        with self._autocast():
            action = self._explore(self.actor(features), stddev, self.config.stddev_clip)
            q = torch.min(*self.critic(features, action))
        actor_loss = -q.mean()
        # Only the actor's gradients are worked out; they add to those that the guide has left there.
        actor_loss.backward(inputs=list(self.actor.parameters()))
        self._actor_optimizer.step()
        metrics["actor_loss"] = actor_loss

        with torch.no_grad():
            tau = self.config.critic_target_tau
            torch._foreach_lerp_(list(self.critic_target.parameters()), list(self.critic.parameters()), tau)
        return {name: value.detach() for name, value in metrics.items()}

    def guide_batch_size(self, decision: int) -> int:
        """Demonstration transitions that `update` uses at `decision`: none where the guide's weight is 0."""
        return self.config.guide_batch_size if self._guide_weight(decision) > 0 else 0

    def _guide(self, demonstrations: TransitionBatch, weight: float, target_q: Tensor) -> dict[str, Tensor]:
        """Adds the gradient of weight * |Q| * MSE(mean, demonstrated action) to actor and encoder.

        |Q| is the mean magnitude of the critic's targets (never taken below 1). Without it a weight would
        mean nothing: with the success bonus Q goes from 0 to some hundreds within a thousand updates, and
        the guide would be drowned just when it is needed. It is TD3+BC's normalisation (Fujimoto & Gu 2021,
        eq. 5) moved to the other term, so that a weight of zero leaves DrQ-v2's own loss.

        The gradient reaches the encoder on purpose. In the first thousands of frames the critic's targets say
        little about where the hand and the object are, while a demonstrated action depends on just that.
        """
        with self._autocast():
            mean = self.actor(self.encoder(self._augment(demonstrations.obs)))  # (D, A)
        guide_loss = F.mse_loss(mean, demonstrations.action)
        magnitude = target_q.abs().mean().clamp(min=1.0)
        (weight * magnitude * guide_loss).backward()
        return {"guide_loss": guide_loss, "guide_weight": guide_loss.new_full((), weight)}

    def _explore(self, mean: Tensor, stddev: float, clip: float) -> Tensor:
        """Mean plus clipped Gaussian noise, kept in [-1, 1]; the gradient passes as if nothing were cut."""
        noise = torch.randn(mean.shape, generator=self._generator, device=mean.device) * stddev
        action = mean + noise.clamp(-clip, clip)
        inside = action.detach().clamp(-1 + 1e-6, 1 - 1e-6)
        return action + (inside - action.detach())

    def _augment(self, obs: Tensor) -> Tensor:
        shifts = torch.randint(0, 2 * SHIFT + 1, (len(obs), 2), generator=self._generator, device=obs.device)
        return random_shift(obs, shifts, SHIFT)

    def _autocast(self) -> torch.autocast:
        # No cache: it would hand weights that were cast without gradients, or before a step, to a later pass.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16, cache_enabled=False)

    def _networks(self) -> dict[str, nn.Module]:
        return {
            "encoder": self.encoder,
            "actor": self.actor,
            "critic": self.critic,
            "critic_target": self.critic_target,
        }

    def weights(self) -> dict[str, Tensor]:
        """Every weight under one flat name, `critic.Q1.output.bias` say (for safetensors)."""
        return flat_weights(self._networks())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes over what `weights()` returned, and nothing else (no optimizer, no random state).

        Raises:
            StateMismatch: the weights belong to an agent of other sizes.
        """
        load_flat_weights(self._networks(), weights)

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


def _cpu_has_bf16(device: torch.device) -> bool:
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()

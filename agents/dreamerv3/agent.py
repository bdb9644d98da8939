"""DreamerV3: an actor-critic that learns in the latent imagination of a recurrent world model.

Hafner, Pasukonis, Ba, Lillicrap: "Mastering Diverse Control Tasks through World Models" (Nature 2025, arXiv
2301.04104), for images and continuous actions. What it computes equals the official code (danijar/dreamerv3 at
e3f0224) to within rounding; `tests/test_dreamer_golden.py` holds every loss and a whole update against it. Ours:
evaluation acts with the actor's mean, where the official code samples.

    agent = DreamerV3(obs_shape=(9, 64, 64), action_dim=4, config=config, device="cpu", seed=1)
    agent.begin_episode(eval_mode=False)
    action = agent.act(obs, decision, eval_mode=False)  # (B, A); of the stacked frames it sees the newest
    agent.remember(stream)                              # new steps of the replay, a StreamBatch
    metrics = agent.update(batch, decision)             # a StreamBatch; flat dict of detached scalars

Letters: B windows, T steps, A action.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.api import InvalidConfig, StreamBatch
from agents.dreamerv3.behaviour import Behaviour
from agents.dreamerv3.config import SIZES, DreamerV3Config
from agents.dreamerv3.memory import StateMemory
from agents.dreamerv3.model import WorldModel
from agents.dreamerv3.nets import initialise
from agents.dreamerv3.optimizer import LaProp
from agents.dreamerv3.rssm import Noise, State
from agents.saving import flat_weights, load_flat_weights
from agents.seeding import substreams

FRAME_CHANNELS = 3
ACTOR_OUTSCALE = 0.01  # of the start weights of the actor's last layers; those of reward and critic are zero


class _Memory(NamedTuple):
    """What an episode under way has left in the agent."""

    state: State
    action: Tensor  # the last one, (B, A)


class DreamerV3:
    """The agent (see the module's docstring).

    Args:
        obs_shape: (C, H, W) of the stacked uint8 images; the last three channels are the newest frame.
        action_dim: A.
        config: the settings.
        device: where the networks live.
        seed: of everything random in the agent, the initial weights included.
    """

    def __init__(
        self,
        obs_shape: tuple[int, int, int],
        action_dim: int,
        config: DreamerV3Config,
        device: torch.device | str,
        seed: int,
    ) -> None:
        self.obs_shape, self.action_dim, self.config = obs_shape, action_dim, config
        self.device = torch.device(device)
        if config.precision == "auto":
            raise InvalidConfig("precision=auto is decided by whoever builds the agent: give it fp32 or bf16")
        self._bf16 = config.precision == "bf16"
        with torch.random.fork_rng(devices=[]):  # the layers' own start weights, drawn here, are overwritten
            self.model = WorldModel((FRAME_CHANNELS, *obs_shape[1:]), action_dim, config)
            self.behaviour = Behaviour(self.model.state_size, action_dim, config)
        weights_seed, noise_seed, evaluation_seed = substreams(seed, 3)
        # Drawn on the CPU, so that a seed means the same weights on every device.
        generator = torch.Generator().manual_seed(weights_seed)
        for network in (self.model.encoder, self.model.rssm, self.model.decoder, self.model.continue_head):
            initialise(network, generator)
        for head, outscale in (
            (self.model.reward, 0.0),
            (self.behaviour.actor, ACTOR_OUTSCALE),
            (self.behaviour.critic, 0.0),
        ):
            initialise(head, generator, outscale)
        self.behaviour.slow_critic.load_state_dict(self.behaviour.critic.state_dict())
        self.model.to(self.device)
        self.behaviour.to(self.device)
        # The layout in which convolutions are fastest, on CPUs and GPUs alike.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        trained = {
            f"{network}.{name}": parameter
            for network, module in self._networks().items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        c = config
        self.optimizer = LaProp(
            trained,
            lr=c.lr,
            warmup_updates=c.warmup_updates,
            agc=c.agc,
            beta1=c.beta1,
            beta2=c.beta2,
            eps=c.eps,
        )
        self.noise = self._noise(noise_seed)
        # Evaluation draws from a stream of its own: evaluating more often must not change training.
        self._evaluation_noise = self._noise(evaluation_seed)
        self._episodes: dict[bool, _Memory | None] = {False: None, True: None}
        self._states: StateMemory | None = None

    # -- acting ------------------------------------------------------------------------------------------------------

    def begin_episode(self, eval_mode: bool) -> None:
        """Forgets the episode before. Training and evaluation have an episode each."""
        self._episodes[eval_mode] = None

    @torch.no_grad()
    def act(self, obs: Tensor, decision: int, eval_mode: bool) -> Tensor:
        """Actions float32 (B, A) in [-1, 1] for obs uint8 (B, C, H, W), next in B episodes; the mean in evaluation."""
        assert obs.dtype == torch.uint8, f"obs must be uint8 images, not {obs.dtype}"
        assert obs.shape[1:] == self.obs_shape, f"obs {tuple(obs.shape)} are not (B, *{self.obs_shape})"
        noise = self._evaluation_noise if eval_mode else self.noise
        frames, batch = obs[:, None, -FRAME_CHANNELS:].to(self.device), len(obs)
        before = self._episodes[eval_mode]
        is_first = torch.full((batch, 1), before is None, device=self.device)
        if before is None:
            before = _Memory(self.model.rssm.initial(batch), torch.zeros(batch, self.action_dim, device=self.device))
        assert len(before.action) == batch, f"{batch} episodes go on, but {len(before.action)} were begun"
        features = self.model.encoder(frames)
        states, _ = self.model.rssm.observe(before.state, features, before.action[:, None], is_first, noise)
        state = State(states.deter[:, 0], states.stoch[:, 0])
        mean, std = self.behaviour.actor(state.features)
        action = mean if eval_mode else mean + std * noise.normal(*mean.shape)
        action = action.clamp(-1.0, 1.0)
        self._episodes[eval_mode] = _Memory(state, action)
        return action

    # -- dreaming, to be looked at -----------------------------------------------------------------------------------

    @torch.no_grad()
    def dream(self, frames: Tensor, actions: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Goes on from K frames uint8 (B, K, 3, H, W) under actions (B, K - 1 + L, A), the first K - 1 of them between.

        Returns:
            Images (B, L, 3, H, W) in (0, 1) and rewards (B, L), each earned on arriving there.
        """
        noise, weights, known = self._noise(seed), self.model.rssm.prepare(), frames.shape[1]
        states = self._see(frames, actions[:, : known - 1], noise)
        state, imagined = State(states.deter[:, -1], states.stoch[:, -1]), []
        for action in actions[:, known - 1 :].unbind(1):
            state = self.model.rssm.step(state, action, noise, weights)
            imagined.append(state)
        states = State(*(torch.stack(parts, 1) for parts in zip(*imagined, strict=True)))
        return self.model.decoder(*states), self.model.reward.mean(self.model.reward(states.features))

    @torch.no_grad()
    def reconstruct(self, frames: Tensor, actions: Tensor, seed: int) -> Tensor:
        """Frames (B, T, 3, H, W), drawn by the model that has seen them with the actions (B, T - 1, A) between."""
        return self.model.decoder(*self._see(frames, actions, self._noise(seed)))

    def _see(self, frames: Tensor, actions: Tensor, noise: Noise) -> State:
        """States (B, T, ...) of frames that begin nowhere special, with the actions (B, T - 1, A) between them."""
        is_first = torch.zeros(frames.shape[:2], dtype=torch.bool, device=self.device)
        is_first[:, 0] = True
        led_here = F.pad(actions, (0, 0, 1, 0))  # (B, T, A)
        start = self.model.rssm.initial(len(frames))
        return self.model.rssm.observe(start, self.model.encoder(frames), led_here, is_first, noise)[0]

    def _noise(self, seed: int) -> Noise:
        return Noise(torch.Generator(self.device).manual_seed(seed))

    # -- learning ----------------------------------------------------------------------------------------------------

    def make_memory(self, slots: int) -> None:
        """Room for a state at each of the replay's slots. Learning needs it, acting does not."""
        self._states = StateMemory(slots, SIZES[self.config.size], self.device)

    @torch.no_grad()
    def remember(self, stream: StreamBatch) -> None:
        """First states for steps (1, T) that are new in the replay; the first of them must begin an episode."""
        assert self._states is not None, "make_memory comes first"
        self._states.reserve(stream.slots)
        stream = stream.to(self.device)
        start, actions = self.model.rssm.initial(len(stream.frames)), F.pad(stream.actions[:, :-1], (0, 0, 1, 0))
        features = self.model.encoder(stream.frames)
        states, _ = self.model.rssm.observe(start, features, actions, stream.is_first, self.noise)
        self._states.write(stream.slots, states)

    def update(self, batch: StreamBatch, decision: int) -> dict[str, Tensor]:
        """One step of world model, actor and critic on windows (B, 1 + T); the first step of each is context.

        Returns:
            Losses by name: a non-finite one means that training has failed. The rest is there to look at. All are
            detached scalars on the device.
        """
        assert self._states is not None, "make_memory comes first"
        batch = batch.to(self.device)
        loss, states, metrics = self.loss(batch, self._states.read(batch.slots[:, 0]), self.noise)
        loss.backward()
        metrics["grad_norm"] = self.optimizer.step()
        self.behaviour.update_slow_critic()
        self._states.write(batch.slots[:, 1:], states)
        return metrics

    def loss(self, batch: StreamBatch, start: State, noise: Noise) -> tuple[Tensor, State, dict[str, Tensor]]:
        """The weighted sum of all losses, the states (B, T, ...) behind them, and metrics to log."""
        c = self.config
        with self._autocast():
            losses, states, metrics = self.model.loss(batch, start, noise)
        first = states.detach()
        # Autocast keeps weights that it has cast, and with them whether gradients were wanted: one scope for each.
        with self._autocast(), torch.no_grad():
            flat = State(first.deter.flatten(0, 1), first.stoch.flatten(0, 1))  # (B T, ...)
            features, actions = self.model.imagine(flat, self.behaviour.actor, noise)
            rewards = self.model.reward.mean(self.model.reward(features))
            continues = torch.sigmoid(self.model.continue_head(features))
        with self._autocast():
            imagined, returns, more = self.behaviour.imagined_loss(features, actions, rewards, continues)
            losses["replay_value"] = self.behaviour.replay_loss(
                states.features,
                batch.rewards[:, :-1],
                batch.is_last[:, 1:],
                batch.is_terminal[:, 1:],
                bootstrap=returns[:, 0].unflatten(0, states.deter.shape[:2]),
            )
        means = {name: value.mean() for name, value in (losses | imagined).items()}
        scales = {
            "dynamics": c.dyn_scale,
            "representation": c.rep_scale,
            "replay_value": c.replay_value_scale,
        }
        total = torch.stack([scales.get(name, 1.0) * value for name, value in means.items()]).sum()
        metrics = {f"{name}_loss": value.detach() for name, value in means.items()} | metrics | more
        return total, first, metrics | {"loss": total.detach()}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16)

    # -- saving ------------------------------------------------------------------------------------------------------

    def _networks(self) -> dict[str, nn.Module]:
        return {"model": self.model, "behaviour": self.behaviour}

    def weights(self) -> dict[str, Tensor]:
        """Every weight under one flat name, `behaviour.actor.mean.bias` say (for safetensors)."""
        return flat_weights(self._networks())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes over what `weights()` returned, and nothing else (no optimizer, no random state).

        Raises:
            StateMismatch: the weights belong to an agent of other sizes.
        """
        load_flat_weights(self._networks(), weights)

    def state(self) -> dict[str, Any]:
        """Optimizer, random states and the states of the replayed steps; an episode under way is not among them.

        As with torch's own `state_dict`, the tensors are the living ones: save them before the next update.
        """
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(),
            "generator": self.noise.generator.get_state(),
            "evaluation_generator": self._evaluation_noise.generator.get_state(),
        }
        if self._states is not None:
            state["states"] = self._states.state_dict()
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        """With `load_weights` and `make_memory`, continues from `state()`: bit for bit on the CPU."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.generator.set_state(state["generator"].cpu())
        self._evaluation_noise.generator.set_state(state["evaluation_generator"].cpu())
        if self._states is not None:
            self._states.load_state_dict(state["states"])

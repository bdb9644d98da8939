"""The world model of DreamerV3: what it learns from replayed steps, and what it imagines.

Hafner et al. (arXiv 2301.04104), section "World model learning", equations 2 to 5; `Agent.loss` in `dreamerv3/agent.py`
of the official code.

Letters: B windows, T steps, N imagined trajectories, H imagined steps, A action, F features of a state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agents.api import StreamBatch
from agents.dreamerv3.config import SIZES, DreamerV3Config
from agents.dreamerv3.heads import Actor, ContinueHead, TwoHotHead, binary_loss
from agents.dreamerv3.nets import Decoder, Encoder
from agents.dreamerv3.rssm import RSSM, Noise, State, entropy, kl_divergence

HEAD_LAYERS = 1


class WorldModel(nn.Module):
    """Encoder, recurrent state-space model, and decoder of images, rewards and continuation."""

    def __init__(self, frame_shape: tuple[int, int, int], action_dim: int, config: DreamerV3Config) -> None:
        super().__init__()
        size = SIZES[config.size]
        latents = size.stoch * size.classes
        self.config = config
        self.state_size = size.deter + latents  # F
        self.encoder = Encoder(frame_shape, size.depth)
        self.rssm = RSSM(size, action_dim, self.encoder.size, config.unimix)
        self.decoder = Decoder(frame_shape, size.depth, size.deter, latents, size.units, size.blocks)
        self.reward = TwoHotHead(self.state_size, size.units, HEAD_LAYERS, config.bins)
        self.continue_head = ContinueHead(self.state_size, size.units, HEAD_LAYERS)

    def loss(
        self, batch: StreamBatch, start: State, noise: Noise
    ) -> tuple[dict[str, Tensor], State, dict[str, Tensor]]:
        """Learns from all steps of a batch but the first, whose state is `start` (B, ...).

        Returns:
            Losses (B, T) by name, not weighted; the states (B, T, ...); metrics to log.
        """
        frames, is_first = batch.frames[:, 1:], batch.is_first[:, 1:]
        states, posterior = self.rssm.observe(start, self.encoder(frames), batch.actions[:, :-1], is_first, noise)
        prior = self.rssm.prior(states.deter)
        features = states.features
        image = self.decoder(states.deter, states.stoch)
        continues = (~batch.is_terminal[:, 1:]).float() * (1 - 1 / self.config.horizon)
        losses = {
            "reconstruction": (image - frames.float() / 255).square().sum((-3, -2, -1)),
            "reward": self.reward.loss(self.reward(features), batch.rewards[:, :-1]),
            "continue": binary_loss(self.continue_head(features), continues),
            "dynamics": kl_divergence(posterior.detach(), prior).clamp(min=self.config.free_nats),
            "representation": kl_divergence(posterior, prior.detach()).clamp(min=self.config.free_nats),
        }
        metrics = {
            "prior_entropy": entropy(prior).mean(),
            "posterior_entropy": entropy(posterior).mean(),
            "replay_reward": batch.rewards[:, :-1].mean(),
        }
        return losses, states, {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def imagine(self, start: State, actor: Actor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Follows the actor from states (N, ...) for `imagination_length` steps.

        Returns:
            Features (N, H + 1, F) of the states, the first included; actions (N, H, A) taken in all but the last.
        """
        weights, state = self.rssm.prepare(), start
        features, actions = [state.features], []
        for _ in range(self.config.imagination_length):
            mean, std = actor(features[-1])
            actions.append(mean + std * noise.normal(*mean.shape))
            state = self.rssm.step(state, actions[-1], noise, weights)
            features.append(state.features)
        return torch.stack(features, 1), torch.stack(actions, 1)

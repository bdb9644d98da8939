"""The recurrent state-space model: what happened so far as one state, and how an action changes it.

A state is a deterministic part, carried by a GRU with block-diagonal weights, and `stoch` categorical latents. With a
frame's features at hand the latents come from the posterior (`observe`), in imagination from the prior (`step`).
Hafner et al. (arXiv 2301.04104), equations 1 to 3; layers as in `dreamerv3/rssm.py` of the official code.

Letters: B rows, T steps, D deterministic units, S latents of K classes, A action, E units of a frame's features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.dreamerv3.config import Size
from agents.dreamerv3.nets import MLP, BlockLinear, Dense, NormSiLU, block_matmul


class State(NamedTuple):
    """A state of the world, or (with a dimension T behind B) a sequence of them."""

    deter: Tensor  # float32 (B, D), in (-1, 1)
    stoch: Tensor  # float32 (B, S K), S one-hot vectors

    @property
    def features(self) -> Tensor:
        """What every head reads: (B, D + S K)."""
        return torch.cat([self.deter, self.stoch], -1)

    def detach(self) -> State:
        return State(self.deter.detach(), self.stoch.detach())


class Noise:
    """Everything random in learning and acting, from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def exponential(self, *shape: int) -> Tensor:
        """Float32, with mean 1: `argmax(probs / exponential)` is a sample."""
        return torch.empty(shape, device=self.generator.device).exponential_(generator=self.generator)

    def normal(self, *shape: int) -> Tensor:
        """Float32, standard normal."""
        return torch.randn(shape, device=self.generator.device, generator=self.generator)


class Weights(NamedTuple):
    """Parts of weights that a sequence of steps uses, cut out and cast once for all of them."""

    hidden_deter: Tensor  # (G, D / G, D / G)
    hidden_inputs: Tensor  # (D, 3 hidden): the inputs that every block sees, for all blocks together
    observed_deter: Tensor  # (hidden, D)
    observed_frame: Tensor  # (hidden, E)


class RSSM(nn.Module):
    """See the module's docstring. `features` is E."""

    def __init__(self, size: Size, action_dim: int, features: int, unimix: float) -> None:
        super().__init__()
        deter, hidden, self.stoch, self.classes = size.deter, size.hidden, size.stoch, size.classes
        latents = self.stoch * self.classes
        self.size, self.unimix = size, unimix
        self.from_deter = Dense(deter, hidden)
        self.from_stoch = Dense(latents, hidden)
        self.from_action = Dense(action_dim, hidden)
        self.hidden = BlockLinear(deter + 3 * hidden * size.blocks, deter, size.blocks)
        self.hidden_norm = NormSiLU(deter)
        self.gates = BlockLinear(deter, 3 * deter, size.blocks)
        self.observed = nn.Linear(deter + features, hidden)
        self.observed_norm = NormSiLU(hidden)
        self.posterior_logits = nn.Linear(hidden, latents)
        self.prior_hidden = MLP(deter, hidden, layers=2)
        self.prior_logits = nn.Linear(hidden, latents)

    def initial(self, batch: int) -> State:
        """The state before anything was seen: zeros."""
        weight = self.observed.weight
        latents = self.stoch * self.classes
        return State(weight.new_zeros(batch, self.size.deter), weight.new_zeros(batch, latents))

    def observe(
        self, start: State, features: Tensor, actions: Tensor, is_first: Tensor, noise: Noise
    ) -> tuple[State, Tensor]:
        """Takes in a sequence of frames.

        Args:
            start: the state before the first of them, (B, ...).
            features: of the frames, (B, T, E).
            actions: those that led to the frames, (B, T, A).
            is_first: bool (B, T); an episode begins here, so that state and action before it do not count.
            noise: of the samples.

        Returns:
            The states (B, T, ...), through whose latents gradients pass straight, and the posterior's probabilities
            (B, T, S, K).
        """
        weights = self.prepare()
        keep = (~is_first).float().unsqueeze(-1)  # (B, T, 1)
        actions = self.from_action(_within_bounds(actions) * keep)  # (B, T, hidden)
        frames = F.linear(features, weights.observed_frame, self.observed.bias)  # (B, T, hidden)
        state, states, posteriors = start, [], []
        for t in range(features.shape[1]):
            deter = self._recur(state.deter * keep[:, t], state.stoch * keep[:, t], actions[:, t], weights)
            hidden = self.observed_norm(F.linear(deter, weights.observed_deter) + frames[:, t])
            probs = self._probs(self.posterior_logits(hidden))
            state = State(deter, self._sample(probs, noise))
            states.append(state)
            posteriors.append(probs)
        deters, stochs = zip(*states, strict=True)
        return State(torch.stack(deters, 1), torch.stack(stochs, 1)), torch.stack(posteriors, 1)

    def prior(self, deter: Tensor) -> Tensor:
        """Probabilities (*, S, K) of the latents without a look at the frame, for deterministic parts (*, D)."""
        return self._probs(self.prior_logits(self.prior_hidden(deter)))

    def step(self, state: State, action: Tensor, noise: Noise, weights: Weights) -> State:
        """The state that `action` (B, A) leads to, imagined; `weights` are those of `prepare`."""
        deter = self._recur(state.deter, state.stoch, self.from_action(_within_bounds(action)), weights)
        return State(deter, self._sample(self.prior(deter), noise))

    def prepare(self) -> Weights:
        """What `step` needs: made once for several steps under the same weights and precision."""
        deter, blocks = self.size.deter, self.size.blocks
        device = self.observed.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        hidden = self.hidden.weight.to(dtype)  # (G, D / G + 3 hidden, D / G)
        own, shared = hidden[:, : deter // blocks], hidden[:, deter // blocks :]
        observed = self.observed.weight.to(dtype)
        return Weights(own, shared.transpose(1, 2).flatten(0, 1), observed[:, :deter], observed[:, deter:])

    def _recur(self, deter: Tensor, stoch: Tensor, action: Tensor, weights: Weights) -> Tensor:
        """One step of the GRU: (B, D)."""
        inputs = torch.cat([self.from_deter(deter), self.from_stoch(stoch), action], -1)  # (B, 3 hidden)
        hidden = F.linear(inputs, weights.hidden_inputs, self.hidden.bias)
        hidden = self.hidden_norm(hidden + block_matmul(deter, weights.hidden_deter).flatten(1))  # (B, D)
        gates = self.gates(hidden).unflatten(1, (self.size.blocks, 3, -1)).float()
        reset, candidate, update = (gates[:, :, i].flatten(1) for i in range(3))
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1)
        return update * candidate + (1 - update) * deter

    def _probs(self, logits: Tensor) -> Tensor:
        """(*, S K) -> probabilities float32 (*, S, K), a share of them uniform."""
        probs = logits.unflatten(-1, (self.stoch, self.classes)).float().softmax(-1)
        return (1 - self.unimix) * probs + self.unimix / self.classes

    def _sample(self, probs: Tensor, noise: Noise) -> Tensor:
        """One-hot samples (B, S K) of `probs` (B, S, K); the gradient passes straight to them."""
        index = (probs.detach() / noise.exponential(*probs.shape)).argmax(-1)
        sample = F.one_hot(index, self.classes).to(probs.dtype)
        if torch.is_grad_enabled():
            sample = sample + (probs - probs.detach())
        return sample.flatten(-2)


def kl_divergence(probs: Tensor, other: Tensor) -> Tensor:
    """Of categoricals (*, S, K), summed over the latents: (*)."""
    return (probs * (probs.log() - other.log())).sum((-2, -1))


def entropy(probs: Tensor) -> Tensor:
    """Of categoricals (*, S, K), summed over the latents: (*)."""
    return -(probs * probs.log()).sum((-2, -1))


def _within_bounds(actions: Tensor) -> Tensor:
    """Actions beyond [-1, 1] count as its ends."""
    return actions.clamp(-1.0, 1.0)

"""Actor and critic of DreamerV3, learned on imagined trajectories; the critic on replayed ones too.

Hafner et al. (arXiv 2301.04104), sections "Critic learning" and "Actor learning", equations 6 to 11; `imag_loss`,
`repl_loss` and `lambda_return` in `dreamerv3/agent.py` of the official code.

Letters: B windows, T steps, N imagined trajectories, H imagined steps, A action, F features of a state.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from agents.dreamerv3.config import SIZES, DreamerV3Config
from agents.dreamerv3.heads import Actor, TwoHotHead, normal_entropy, normal_log_prob

HEAD_LAYERS = 3
PERCENTILES = (0.05, 0.95)


class ReturnScale(nn.Module):
    """The range from the 5th to the 95th percentile of the returns, as an exponential average from zero on."""

    def __init__(self, rate: float, limit: float) -> None:
        super().__init__()
        self.rate, self.limit = rate, limit
        self.register_buffer("percentiles", torch.zeros(2))
        self.register_buffer("wanted", torch.tensor(PERCENTILES), persistent=False)
        self.percentiles: Tensor
        self.wanted: Tensor

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Takes in returns of any shape; the range, a scalar of at least `limit`."""
        self.percentiles.lerp_(torch.quantile(returns.flatten(), self.wanted), self.rate)
        return (self.percentiles[1] - self.percentiles[0]).clamp(min=self.limit)


class Behaviour(nn.Module):
    """Actor, critic and the critic's slow average."""

    def __init__(self, inputs: int, action_dim: int, config: DreamerV3Config) -> None:
        super().__init__()
        units = SIZES[config.size].units
        self.config = config
        self.actor = Actor(inputs, units, HEAD_LAYERS, action_dim, config.min_std, config.max_std)
        self.critic = TwoHotHead(inputs, units, HEAD_LAYERS, config.bins)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_scale = ReturnScale(config.return_rate, config.return_limit)

    def imagined_loss(
        self, features: Tensor, actions: Tensor, rewards: Tensor, continues: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """Losses on imagined trajectories; of the arguments none gets a gradient.

        Args:
            features: of the states, (N, H + 1, F).
            actions: taken in all but the last, (N, H, A).
            rewards: predicted in each state, (N, H + 1); that of the first is not used.
            continues: probability that the episode goes on times the discount, (N, H + 1).

        Returns:
            Losses (N, H) by name, not weighted; returns (N, H); metrics to log.
        """
        c = self.config
        logits = self.critic(features)
        with torch.no_grad():
            value = self.critic.mean(logits)
            returns = lambda_returns(rewards, continues, value, torch.full_like(value, c.return_lambda))
            weight = continues.cumprod(1)[:, :-1]
            advantage = (returns - value[:, :-1]) / self.return_scale.update(returns)
        mean, std = self.actor(features[:, :-1])
        entropy = normal_entropy(std)
        reinforce = normal_log_prob(mean, std, actions) * advantage
        losses = {
            "policy": -weight * (reinforce + c.entropy * entropy),
            "value": weight * self._critic_loss(features[:, :-1], logits[:, :-1], returns),
        }
        scale = self.return_scale.percentiles
        metrics = {
            "imagined_reward": rewards[:, 1:].mean(),
            "imagined_return": returns.mean(),
            "value": value.mean(),
            "return_range": scale[1] - scale[0],
            "advantage_magnitude": advantage.abs().mean(),
            "policy_entropy": entropy.mean(),
        }
        return losses, returns, {name: metric.detach() for name, metric in metrics.items()}

    def replay_loss(
        self, features: Tensor, rewards: Tensor, is_last: Tensor, is_terminal: Tensor, bootstrap: Tensor
    ) -> Tensor:
        """The critic's loss (B, T - 1) on replayed steps; gradients reach the states' features (B, T, F).

        `rewards` (B, T) were earned on the way to the states; `bootstrap` (B, T) are the returns imagined from them.
        """
        discount, end = 1 - 1 / self.config.horizon, is_last.float()
        continues = (~is_terminal).float() * discount
        with torch.no_grad():
            returns = lambda_returns(rewards, continues, bootstrap, (1 - end) * self.config.return_lambda)
        logits = self.critic(features[:, :-1])
        return (1 - end[:, :-1]) * self._critic_loss(features[:, :-1], logits, returns)

    def _critic_loss(self, features: Tensor, logits: Tensor, returns: Tensor) -> Tensor:
        """Cross-entropy to the returns and, as a regulariser, to the slow critic's mean."""
        with torch.no_grad():
            slow = self.slow_critic.mean(self.slow_critic(features))
        return self.critic.loss(logits, returns) + self.config.slow_scale * self.critic.loss(logits, slow)

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Moves the slow critic a little towards the critic."""
        slow, fast = tuple(self.slow_critic.parameters()), tuple(self.critic.parameters())
        torch._foreach_lerp_(slow, fast, self.config.slow_rate)


def lambda_returns(rewards: Tensor, continues: Tensor, values: Tensor, lam: Tensor) -> Tensor:
    """Returns (N, H) of all states but the last, from rewards, continues, values and lambdas (N, H + 1) of all.

    return(t) = reward(t+1) + continue(t+1) ((1 - lambda(t+1)) value(t+1) + lambda(t+1) return(t+1)), where the last
    state's return is its value (equation 7).
    """
    live, lam = continues[:, 1:], lam[:, 1:]
    base = rewards[:, 1:] + (1 - lam) * live * values[:, 1:]
    decay, ret, returns = lam * live, values[:, -1], []
    for t in reversed(range(base.shape[1])):
        ret = base[:, t] + decay[:, t] * ret
        returns.append(ret)
    return torch.stack(returns[::-1], 1)

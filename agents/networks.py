"""Networks of agents that learn from pixels: encoder, trunk, MLP, actor, critic; random shift, initialisation.

All follow DrQ-v2 (Yarats et al. 2021, arXiv 2107.09645) unless they say otherwise.
Letters: B batch, C stacked channels, H W image, A action, F encoder features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# (channels, kernel, stride, padding) of each convolution; behind it the features of a 64x64 image
ENCODERS = {
    "drqv2": ((32, 3, 2, 0), (32, 3, 1, 0), (32, 3, 1, 0), (32, 3, 1, 0)),  # 20000
    "quarter": ((32, 3, 2, 1), (32, 3, 2, 1), (32, 3, 1, 1), (32, 3, 1, 1)),  # 8192; for CPUs
    "strided": (
        (32, 3, 2, 1),
        (32, 3, 2, 1),
        (32, 3, 2, 1),
        (64, 3, 2, 1),
    ),  # 1024; cheapest, and blind to a few pixels
}


class Encoder(nn.Module):
    """Images uint8 (B, C, H, W) -> features (B, F)."""

    def __init__(self, obs_shape: tuple[int, int, int], kind: str) -> None:
        super().__init__()
        channels, layers = obs_shape[0], []
        for width, kernel, stride, padding in ENCODERS[kind]:
            layers += [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
            channels = width
        self.convnet = nn.Sequential(*layers)
        self.repr_dim = self.convnet(torch.empty(1, *obs_shape, device="meta")).numel()

    def forward(self, obs: Tensor) -> Tensor:
        # The one place where the agent scales images: [0, 255] -> [-0.5, 0.5].
        obs = obs.contiguous(memory_format=torch.channels_last).float().div_(255.0).sub_(0.5)
        return self.convnet(obs).flatten(1)


class Trunk(nn.Module):
    """Features (B, F) -> (B, feature_dim), squashed; float32 whatever the precision."""

    def __init__(self, repr_dim: int, feature_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(repr_dim, feature_dim)
        self.norm = nn.LayerNorm(feature_dim)

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(features).float()))


class MLP(nn.Module):
    """Two hidden layers. The last one computes in float32: a Q of some hundreds has no digits in bfloat16.

    `layer_norm` normalises each hidden layer before its ReLU, as DroQ (Hiraoka et al. 2022, arXiv 2110.02034) and
    RLPD (Ball et al. 2023, arXiv 2302.02948) do in their critics.
    """

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, layer_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (input_dim, hidden_dim):
            norm = [nn.LayerNorm(hidden_dim)] if layer_norm else []
            layers += [nn.Linear(width, hidden_dim), *norm, nn.ReLU(inplace=True)]
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(hidden_dim, output_dim)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.hidden(inputs)
        with torch.autocast(hidden.device.type, enabled=False):
            return self.output(hidden.float())


class Actor(nn.Module):
    """Features (B, F) -> mean action (B, A) in (-1, 1)."""

    def __init__(self, repr_dim: int, action_dim: int, feature_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.trunk = Trunk(repr_dim, feature_dim)
        self.policy = MLP(feature_dim, hidden_dim, action_dim)

    def before_tanh(self, features: Tensor) -> Tensor:
        return self.policy(self.trunk(features))

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.before_tanh(features))


class Critic(nn.Module):
    """Features (B, F) and actions (B, A) -> two estimates of Q, each (B, 1)."""

    def __init__(self, repr_dim: int, action_dim: int, feature_dim: int, hidden_dim: int, layer_norm: bool) -> None:
        super().__init__()
        self.trunk = Trunk(repr_dim, feature_dim)
        self.Q1 = MLP(feature_dim + action_dim, hidden_dim, 1, layer_norm)
        self.Q2 = MLP(feature_dim + action_dim, hidden_dim, 1, layer_norm)

    def forward(self, features: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.cat([self.trunk(features), action], dim=-1)  # (B, feature_dim + A)
        return self.Q1(hidden), self.Q2(hidden)


def random_shift(obs: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """Pads with the edge pixels by `pad` and cuts obs's size out again, at a place of its own for each item.

    For whole pixels this equals DrQ-v2's bilinear `grid_sample`, without leaving uint8.

    Args:
        obs: (B, C, H, W) of any type.
        shifts: int64 (B, 2), row and column in [0, 2 pad]; `pad` means no shift.
    """
    height, width = obs.shape[2:]
    left, right = obs[..., :1].expand(-1, -1, -1, pad), obs[..., -1:].expand(-1, -1, -1, pad)
    padded = torch.cat([left, obs, right], dim=3)
    top, bottom = padded[..., :1, :].expand(-1, -1, pad, -1), padded[..., -1:, :].expand(-1, -1, pad, -1)
    padded = torch.cat([top, padded, bottom], dim=2)  # (B, C, H + 2 pad, W + 2 pad)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # view (B, C, 2 pad + 1, 2 pad + 1, H, W)
    item = torch.arange(len(obs), device=obs.device)
    if obs.device.type == "cpu":  # numpy copies whole rows where torch copies pixel by pixel: half the time
        rows, columns = shifts.numpy().T
        return torch.from_numpy(windows.numpy()[item.numpy(), :, rows, columns])
    return windows[item, :, shifts[:, 0], shifts[:, 1]]


def orthogonal_init(network: nn.Module, generator: torch.Generator) -> None:
    """DrQ-v2's initialisation: orthogonal weights (gain of ReLU for convolutions), zero biases."""
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            gain = nn.init.calculate_gain("relu") if isinstance(module, nn.Conv2d) else 1.0
            nn.init.orthogonal_(module.weight, gain, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

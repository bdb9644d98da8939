"""The layers of DreamerV3: dense and block-diagonal layers, the image's encoder and decoder.

Hafner et al., "Mastering Diverse Control Tasks through World Models" (Nature 2025, arXiv 2301.04104); initialisation,
order of operations and constants as in the official code (danijar/dreamerv3 at e3f0224, `embodied/jax/nets.py` and
`dreamerv3/rssm.py`). Every layer is linear, then RMS norm, then SiLU.

Letters: N any leading dimensions, B rows, C H W image, G blocks, I O units in and out of a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-4
KERNEL = 5
MULTIPLIERS = (2, 3, 4, 4)  # channels of the encoder's convolutions, times `depth`
SMALLEST_MAP = 3  # pixels; what is left of an image behind them must be at least so wide


class _NormSiLU(torch.autograd.Function):
    """SiLU(x / rms(x) * scale) in float32; half the passes over memory that autograd would make of the same formula."""

    @staticmethod
    def forward(context: Any, x: Tensor, scale: Tensor) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(NORM_EPS).rsqrt_()
        context.save_for_backward(x, inverse, scale)
        return F.silu((wide * inverse).mul_(scale), inplace=True).to(x.dtype)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, inverse, scale = context.saved_tensors
        normed = x * inverse  # float32
        gradient = torch.ops.aten.silu_backward(gradients[0].float(), normed * scale)
        product = gradient * normed
        mean = (product @ scale).unsqueeze(-1).div_(len(scale))
        scale_gradient = product.flatten(0, -2).sum(0)
        return gradient.mul_(scale).addcmul_(normed, mean, value=-1).mul_(inverse).to(x.dtype), scale_gradient


class NormSiLU(nn.Module):
    """SiLU(RMSNorm(x)) over the last dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return _NormSiLU.apply(x, self.scale)


class Dense(nn.Module):
    """(*N, inputs) -> (*N, units): linear, norm, SiLU."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, units)
        self.norm = NormSiLU(units)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x))


class MLP(nn.Sequential):
    """(*N, inputs) -> (*N, units) through `layers` dense layers."""

    def __init__(self, inputs: int, units: int, layers: int) -> None:
        super().__init__(*(Dense(inputs if i == 0 else units, units) for i in range(layers)))


class BlockLinear(nn.Module):
    """(B, G I) -> (B, G O), where each block of the output sees only its block of the input."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        assert inputs % blocks == 0 == outputs % blocks, f"{inputs} and {outputs} are no multiples of {blocks} blocks"
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))  # (G, I, O)
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return block_matmul(x, self.weight).flatten(1) + self.bias


def block_matmul(x: Tensor, weight: Tensor) -> Tensor:
    """(B, G I) by (G, I, O) -> (B, G, O)."""
    blocks = x.unflatten(1, (len(weight), -1)).transpose(0, 1)  # (G, B, I)
    return torch.bmm(blocks, weight).transpose(0, 1)


class Encoder(nn.Module):
    """Frames uint8 (*N, 3, H, W) -> (*N, size): convolution, 2x2 max pooling, norm, SiLU, down to a small map."""

    def __init__(self, frame_shape: tuple[int, int, int], depth: int) -> None:
        super().__init__()
        channels, self.map_size, widths = stages(frame_shape, depth)
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for width in widths:
            self.convs.append(nn.Conv2d(channels, width, KERNEL, padding=KERNEL // 2))
            self.norms.append(NormSiLU(width))
            channels = width
        self.size = self.map_size**2 * channels

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.flatten(0, -4).contiguous(memory_format=torch.channels_last).float() / 255 - 0.5
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(conv(x), 2)
            x = norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # over the channels; the memory stays as it lies
        x = x.permute(0, 2, 3, 1).flatten(1)  # (B, H' W' C')
        return x.unflatten(0, frames.shape[:-3])


class UpConv(nn.Module):
    """(B, H, W, C) -> (B, 2H, 2W, outputs): every pixel doubled in both directions, then a 5x5 convolution.

    Computed as a 3x3 convolution before the doubling: of the five taps in a row, those that fall on copies of one pixel
    are added up first. Even and odd places see different sums, so there are 2 x 2 kernels. It is the same function
    with 9 in place of 25 products.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, KERNEL)  # holds the 5x5 kernel
        folded = torch.zeros(2, 3, KERNEL)  # even or odd place, tap on the small image, tap on the doubled one
        for parity in range(2):
            for tap in range(KERNEL):
                folded[parity, (parity + tap - KERNEL // 2) // 2 + 1, tap] = 1
        self.register_buffer("folded", folded, persistent=False)
        self.folded: Tensor

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.einsum("pak,qbl,oikl->pqoiab", self.folded, self.folded, self.conv.weight).flatten(0, 2)
        bias = self.conv.bias.repeat(4)  # type: ignore[union-attr]
        y = F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=1).permute(0, 2, 3, 1)  # (B, H, W, 2 2 outputs)
        y = y.unflatten(3, (2, 2, -1)).permute(0, 1, 3, 2, 4, 5)  # (B, H, 2, W, 2, outputs)
        return y.flatten(3, 4).flatten(1, 2)


class Decoder(nn.Module):
    """State -> image (*N, 3, H, W) in (0, 1). The recurrent part enters block by block, the latents densely."""

    def __init__(
        self, frame_shape: tuple[int, int, int], depth: int, deter: int, latents: int, units: int, blocks: int
    ) -> None:
        super().__init__()
        channels, self.map_size, widths = stages(frame_shape, depth)
        self.blocks, self.width = blocks, widths[-1]
        assert self.width % blocks == 0, f"{self.width} channels are no multiple of {blocks} blocks"
        size = self.map_size**2 * self.width
        self.from_deter = BlockLinear(deter, size, blocks)
        self.hidden = Dense(latents, 2 * units)
        self.from_latents = nn.Linear(2 * units, size)
        self.norm = NormSiLU(self.width)
        inputs = widths[::-1]
        self.convs = nn.ModuleList(UpConv(i, o) for i, o in zip(inputs, [*inputs[1:], channels], strict=True))
        self.norms = nn.ModuleList(NormSiLU(width) for width in inputs[1:])

    def forward(self, deter: Tensor, latents: Tensor) -> Tensor:
        lead, side = deter.shape[:-1], self.map_size
        deter, latents = deter.flatten(0, -2), latents.flatten(0, -2)
        blocks = self.from_deter(deter).unflatten(1, (self.blocks, side, side, -1))  # (B, G, H', W', C' / G)
        x = blocks.permute(0, 2, 3, 1, 4).flatten(3)  # (B, H', W', C')
        x = self.norm(x + self.from_latents(self.hidden(latents)).view(x.shape))
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if i < len(self.norms):
                x = self.norms[i](x)
        return torch.sigmoid(x.permute(0, 3, 1, 2).float()).unflatten(0, lead)


def stages(frame_shape: tuple[int, int, int], depth: int) -> tuple[int, int, list[int]]:
    """Channels of the image, width of the smallest map, and channels of each convolution of an encoder.

    Raises ValueError for an image that cannot be halved so often.
    """
    channels, height, width = frame_shape
    count = len(MULTIPLIERS) if height >= 64 else len(MULTIPLIERS) - 1
    smallest = height // 2**count
    if height != width or height % 2**count or smallest < SMALLEST_MAP:
        fitting = "a multiple of 8 from 24 on, of 16 from 64 on"
        raise ValueError(f"images of {height}x{width} pixels do not fit: their side must be {fitting}")
    return channels, smallest, [depth * multiplier for multiplier in MULTIPLIERS[:count]]


@torch.no_grad()
def initialise(network: nn.Module, generator: torch.Generator, outscale: float = 1.0) -> None:
    """Truncated normal weights with variance 1 / inputs, cut at two deviations; biases zero, scales one.

    `outscale` multiplies the weights of the last linear layers: those that are direct children of `network`. As in the
    official code the inputs of a block-diagonal layer are those of all blocks together.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | BlockLinear):
            weight = module.weight
            inputs = (
                weight.numel() // weight.shape[0] if not isinstance(module, BlockLinear) else weight[..., 0].numel()
            )
            last = any(module is child for child in network.children())
            nn.init.trunc_normal_(weight, 0.0, 1.0, -2.0, 2.0, generator=generator)
            weight.mul_(1.1368 * math.sqrt(1 / inputs) * (outscale if last else 1.0))
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, NormSiLU):
            module.scale.fill_(1.0)

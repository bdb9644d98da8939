"""Convolutional blocks of the tokenizer: residual encoder and decoder, and their conditional twins.

The conditional encoder and decoder see one future frame and look at the context frames through cross-attention.
Parameter names are those of the official checkpoints (iVideoGPT, arXiv 2405.15223, appendix A.1, after diffusers'
AutoencoderKL), so that weights load without a table.

Letters: B clips, K context frames, F future frames a clip, C channels, H W height and width, P positions = H W.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
POSITION_SCALE = 1.0  # position weighs about as much as content when attention starts
Memory = tuple[Tensor, Tensor]  # keys and values of a clip's context, each (B, heads, K P, C / heads)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class SelfAttention(nn.Module):
    """One head over all positions of a feature map."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, P, C)
        h = F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out(h).transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int, attention: bool):
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([SelfAttention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Every pixel twice in both directions, then a 3x3 convolution.

    Of three taps in a row two fall on copies of one pixel. They are added up first, and a transposed convolution of the
    small map gives the same with 16 products where there were 36.
    """

    spread: Tensor  # (9, 16): what each tap of the one kernel adds to the taps of the other

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)  # holds the 3x3 kernel
        # A row of taps (a, b, c) becomes (a, a + b, b + c, c), and a transposed convolution wants it backwards.
        row = torch.tensor([[0.0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
        self.register_buffer("spread", torch.kron(row, row), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = (self.conv.weight.flatten(2) @ self.spread).unflatten(2, (4, 4))
        return F.conv_transpose2d(x, kernel.transpose(0, 1), self.conv.bias, stride=2, padding=1)


class DownBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, downsample: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList([ResnetBlock(width, out_channels, groups) for width in widths])
        self.downsamplers = nn.ModuleList([Downsample(out_channels)] if downsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.resnets, *self.downsamplers]:
            x = layer(x)
        return x


class UpBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, upsample: bool):
        super().__init__()
        widths = [in_channels] + [out_channels] * (layers - 1)
        self.resnets = nn.ModuleList([ResnetBlock(width, out_channels, groups) for width in widths])
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer(x)
        return x


def sinusoid(side: int, channels: int) -> Tensor:
    """Position embedding of a map, (side^2, channels): sines and cosines of the row, then of the column."""
    quarter = channels // 4
    frequency = torch.pi / 2 * torch.linspace(1, 1 / side, quarter)  # from every other pixel to once across the map
    angle = torch.arange(side)[:, None] * frequency  # (side, C / 4)
    line = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, C / 2)
    rows, columns = line[:, None].expand(-1, side, -1), line[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class CrossAttention(nn.Module):
    """A future frame's feature map looks at the K context frames' maps of the same size.

    Keys and values depend on the context alone: `memory` computes them once, `forward` uses them for any number of
    future frames. Residual, then SiLU (official code).
    """

    def __init__(
        self, channels: int, resolution: int, context_length: int, groups: int, dropout: float, heads: int = 4
    ):
        super().__init__()
        # Holds the projections under their official names; they are applied below, where keys and values can be kept.
        self.att = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.kv_norm = nn.GroupNorm(groups, channels)
        self.q_norm = nn.GroupNorm(groups, channels)
        # A model that starts at random begins by looking at the same place of the context: both position embeddings
        # are one two-dimensional sinusoid, and queries and keys one projection of it. Found from nothing, this
        # alignment takes thousands of updates. (The official start is zero; its checkpoints overwrite ours.)
        positions = POSITION_SCALE * sinusoid(resolution, channels)
        self.kv_pos_emb = nn.Parameter(positions.repeat(context_length, 1))
        self.q_pos_emb = nn.Parameter(positions)
        with torch.no_grad():
            self.att.in_proj_weight[channels : 2 * channels] = self.att.in_proj_weight[:channels]
        self.heads = heads
        self.dropout = dropout

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, tokens, C) -> (B, heads, tokens, C / heads)

    def memory(self, context: Tensor) -> Memory:
        """context (B, K, C, H, W) -> keys and values. The norm runs over the joined frames, as in the official code."""
        channels = context.shape[2]
        joined = self.kv_norm(context.transpose(1, 2).flatten(2))  # (B, C, K P)
        weight, bias = self.att.in_proj_weight[channels:], self.att.in_proj_bias[channels:]
        keys, values = F.linear(joined.transpose(1, 2) + self.kv_pos_emb, weight, bias).chunk(2, dim=-1)
        return self._heads(keys), self._heads(values)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        """x (B F, C, H, W), memory of B clips -> (B F, C, H, W). The F frames of a clip share one attention call.

        Without memory nothing is added: what is left is what the frame's own tokens say.
        """
        if memory is None:
            return F.silu(x)
        keys, values = memory
        channels, dropout = x.shape[1], self.dropout if self.training else 0.0
        q = self.q_norm(x).flatten(2).transpose(1, 2) + self.q_pos_emb  # (B F, P, C)
        q = F.linear(q, self.att.in_proj_weight[:channels], self.att.in_proj_bias[:channels])
        q = self._heads(q.reshape(keys.shape[0], -1, channels))  # (B, heads, F P, C / heads)
        h = F.scaled_dot_product_attention(q, keys, values, dropout_p=dropout)
        h = self.att.out_proj(h.transpose(1, 2).reshape(x.shape[0], -1, channels))  # (B F, P, C)
        h = F.dropout(h, dropout)
        return F.silu(x + h.transpose(1, 2).reshape(x.shape))


class Encoder(nn.Module):
    """Image (B, 3, H, W) -> map (B, latent, H / 2^(levels-1), ...)."""

    def __init__(
        self,
        in_channels: int,
        latent: int,
        channels: Sequence[int],
        layers: int,
        groups: int,
        mid_attention: bool,
    ):
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        widths = [channels[0], *channels]
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(widths[i], width, layers, groups, downsample=i < len(channels) - 1)
                for i, width in enumerate(channels)
            ]
        )
        self.mid_block = MidBlock(channels[-1], groups, mid_attention)
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], latent, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Also returns the map after each down block."""
        x, features = self.conv_in(x), []
        for block in self.down_blocks:
            x = block(x)
            features.append(x)
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x))), features


class Decoder(nn.Module):
    """The mirror of `Encoder`: map -> image."""

    def __init__(
        self,
        latent: int,
        out_channels: int,
        channels: Sequence[int],
        layers: int,
        groups: int,
        mid_attention: bool,
    ):
        super().__init__()
        channels = list(reversed(channels))
        self.conv_in = nn.Conv2d(latent, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups, mid_attention)
        widths = [channels[0], *channels]
        self.up_blocks = nn.ModuleList(
            [
                UpBlock(widths[i], width, layers + 1, groups, upsample=i < len(channels) - 1)
                for i, width in enumerate(channels)
            ]
        )
        self.conv_norm_out = nn.GroupNorm(groups, channels[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Also returns the map after the middle block and after each up block."""
        features = self.features(x, len(self.up_blocks))
        return self.conv_out(F.silu(self.conv_norm_out(features[-1]))), features

    def features(self, x: Tensor, levels: int) -> list[Tensor]:
        """The map after the middle block and after each of the first `levels` up blocks."""
        x = self.mid_block(self.conv_in(x))
        features = [x]
        for block in itertools.islice(self.up_blocks, levels):
            x = block(x)
            features.append(x)
        return features


class ConditionalEncoder(Encoder):
    """Encodes a future frame: after each down block whose map is small enough, look at the context's map there."""

    def __init__(
        self,
        in_channels: int,
        latent: int,
        channels: Sequence[int],
        layers: int,
        groups: int,
        resolution: int,
        max_resolution: int,
        context_length: int,
        dropout: float,
    ):
        super().__init__(in_channels, latent, channels, layers, groups, mid_attention=True)
        last = len(channels) - 1
        sizes = [resolution >> min(i + 1, last) for i in range(len(channels))]
        self.attended = [i for i, size in enumerate(sizes) if size <= max_resolution]
        self.cross_att_blocks = nn.ModuleList(
            [CrossAttention(channels[i], sizes[i], context_length, groups, dropout) for i in self.attended]
        )

    def memory(self, features: list[Tensor]) -> list[Memory]:
        """features: the context's maps after each down block, (B, K, C, H, W) each."""
        blocks = cast(Iterable[CrossAttention], self.cross_att_blocks)
        return [block.memory(features[i]) for block, i in zip(blocks, self.attended, strict=True)]

    def forward(self, x: Tensor, memory: list[Memory]) -> Tensor:  # type: ignore[override]
        x, used = self.conv_in(x), 0
        for i, block in enumerate(self.down_blocks):
            x = block(x)
            if i in self.attended:
                x = self.cross_att_blocks[used](x, memory[used])
                used += 1
        x = self.mid_block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class ConditionalDecoder(Decoder):
    """Decodes a future frame: after the middle block and each small enough up block, look at the context's map."""

    def __init__(
        self,
        latent: int,
        out_channels: int,
        channels: Sequence[int],
        layers: int,
        groups: int,
        resolution: int,
        max_resolution: int,
        context_length: int,
        dropout: float,
    ):
        super().__init__(latent, out_channels, channels, layers, groups, mid_attention=True)
        channels = list(reversed(channels))
        last = len(channels) - 1
        sizes = [resolution << min(i + 1, last) for i in range(len(channels))]
        self.attended = [i for i, size in enumerate(sizes) if size <= max_resolution]
        self.looked_at = [0] + [i + 1 for i in self.attended]  # of the context's maps
        self.cross_att_blocks = nn.ModuleList(
            [CrossAttention(channels[0], resolution, context_length, groups, dropout)]
            + [CrossAttention(channels[i], sizes[i], context_length, groups, dropout) for i in self.attended]
        )

    def memory(self, features: list[Tensor]) -> list[Memory]:
        """features: the context's maps after the middle block and each up block, (B, K, C, H, W) each."""
        blocks = cast(Iterable[CrossAttention], self.cross_att_blocks)
        return [block.memory(features[i]) for block, i in zip(blocks, self.looked_at, strict=True)]

    def forward(self, x: Tensor, memory: list[Memory] | None) -> Tensor:  # type: ignore[override]
        memory = memory or [None] * len(self.cross_att_blocks)  # type: ignore[list-item]
        x = self.mid_block(self.conv_in(x))
        x, used = self.cross_att_blocks[0](x, memory[0]), 1
        for i, block in enumerate(self.up_blocks):
            x = block(x)
            if i in self.attended:
                x = self.cross_att_blocks[used](x, memory[used])
                used += 1
        return self.conv_out(F.silu(self.conv_norm_out(x)))

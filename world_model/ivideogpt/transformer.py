"""A LLaMA decoder (Touvron et al., arXiv 2302.13971): RMSNorm, rotary positions, SwiGLU, no biases.

Read `Transformer.forward` for training and `Transformer.step` for generation with keys and values kept.

Letters: B batch, L tokens, D width, N heads, S slots of the cache. Positions count from 0 at the first token.
"""

from __future__ import annotations

import copy
import platform
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How a transformer that begins at random differs from `initializer_range` (found by measuring, docs/pretraining.md).
INIT_GAIN = 3.0  # embeddings, queries and keys
INIT_PASS_THROUGH = 0.1  # attention's output, of what it reads

QUERIES = 170  # that a CPU attends to at a time


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes, under the names of the official config.json. The vocabulary follows from the tokenizer."""

    hidden_size: Annotated[int, "[1, inf)"]
    intermediate_size: Annotated[int, "[1, inf)"]
    num_hidden_layers: Annotated[int, "[1, inf)"]
    num_attention_heads: Annotated[int, "[1, inf)"]
    attention_dropout: Annotated[float, "[0, 1)"]
    rms_norm_eps: Annotated[float, "(0, inf)"]
    rope_theta: Annotated[float, "(0, inf)"]
    initializer_range: Annotated[float, "(0, inf)"]
    # longest sequence trained on; rotary positions set no hard limit
    max_position_embeddings: Annotated[int, "[1, inf)"]

    def parameters(self, vocabulary: int) -> int:
        """How many a transformer of these sizes has."""
        width, layers = self.hidden_size, self.num_hidden_layers
        per_layer = 4 * width**2 + 3 * width * self.intermediate_size + 2 * width
        return layers * per_layer + (2 * vocabulary + 1) * width


class PackedLinear:
    """The product of a few rows with a weight (E, D): x (..., D) -> (..., E), in the precision of the present autocast.

    On a CPU such a product waits for the weight, and at every call oneDNN would bring it into another order first. Here
    that is done once, for a copy of the weight as it is now; there are no gradients. The two operators are those of
    `torch.compile`'s CPU backend; where they do not work it is `F.linear`.
    """

    def __init__(self, weight: Tensor, rows: int):
        """`rows`: the most there will be; more are multiplied as usual."""
        self.weight, self.rows, self.ordered = weight, rows, None
        device, dtype = weight.device.type, weight.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        if device == "cpu" and _can_order(dtype):
            self.ordered = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), rows)

    def __call__(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled(), "PackedLinear has no gradients"
        if self.ordered is None or x.shape[:-1].numel() > self.rows:
            return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x.to(self.ordered.dtype), self.ordered, None, "none", [], "")


def _can_order(dtype: torch.dtype) -> bool:
    if platform.machine() not in ("x86_64", "AMD64") or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class KVCache:
    """What a rollout keeps.

    Keys and values of everything read so far, (layers, B, N, S, D / N) each, and the layers' weights once more, as one
    or two tokens a rollout are multiplied with them (`rollout.py` reads no more at a time). After `expand` the B rows
    are groups of n that share what was read before; it is kept, and attended to, once a group: (layers, B / n, ...).
    """

    def __init__(self, transformer: Transformer, batch: int, slots: int, device: torch.device, dtype: torch.dtype):
        config = transformer.config
        head = config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, batch, config.num_attention_heads, slots, head)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.own = 0  # tokens held in `keys` and `values`
        self.shared: tuple[Tensor, Tensor] | None = None
        self.linears = [module for module in transformer.blocks.modules() if isinstance(module, nn.Linear)]
        self.products = {linear: PackedLinear(linear.weight, 2 * batch) for linear in self.linears}

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.own + (self.shared[0].shape[3] if self.shared else 0)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, N, L, D / N) behind what is there; return the rows' own keys and values of the layer, all of them.

        They count once the last layer is done, see `Transformer.step`.
        """
        end = self.own + keys.shape[2]
        if end > self.keys.shape[3]:
            self._grow(end)
        self.keys[layer, :, :, self.own : end] = keys
        self.values[layer, :, :, self.own : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def _grow(self, slots: int) -> None:
        slots = max(slots, 2 * self.keys.shape[3])
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:3], slots, old.shape[4])
            new[:, :, :, : self.own] = old[:, :, :, : self.own]
            setattr(self, name, new)

    def fork(self) -> KVCache:
        """A copy that can go another way."""
        other = copy.copy(self)
        other.keys, other.values = self.keys.clone(), self.values.clone()
        return other

    def expand(self, n: int, slots: int) -> KVCache:
        """n rows for each row, with room for `slots` more tokens; what was read so far is shared."""
        other, rows = copy.copy(self), n * self.keys.shape[1]
        held = [self.keys[:, :, :, : self.own], self.values[:, :, :, : self.own]]
        if self.shared:
            times = self.keys.shape[1] // self.shared[0].shape[1]
            held = [
                torch.cat([past.repeat_interleave(times, dim=1), own], dim=3)
                for past, own in zip(self.shared, held, strict=True)
            ]
        other.shared = (held[0].contiguous(), held[1].contiguous())
        shape = (self.keys.shape[0], rows, self.keys.shape[2], slots, self.keys.shape[4])
        other.keys, other.values, other.own = self.keys.new_empty(shape), self.values.new_empty(shape), 0
        other.products = {linear: PackedLinear(linear.weight, 2 * rows) for linear in self.linears}
        return other


def attend(q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int) -> Tensor:
    """New tokens look at all of a rollout: q (B, N, L, D / N), the rows' own k and v (B, N, E, D / N) -> q's shape."""
    length, end = q.shape[2], k.shape[2]
    # A single new token sees everything; of several, each sees what is before it.
    later = None
    if length > 1:
        later = torch.ones(length, end, dtype=torch.bool, device=q.device).triu(end - length + 1)
    if cache.shared is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if later is None else ~later)
    past_k, past_v = cache.shared[0][layer], cache.shared[1][layer]  # (G, N, S, D / N), B = G n
    groups, q = len(past_k), q / q.shape[3] ** 0.5

    def by_group(x: Tensor) -> Tensor:  # (G n, N, L, ...) -> (G, N, n L, ...): one product with what a group shares
        return x.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2, 3)

    past = by_group(q) @ past_k.transpose(2, 3)  # (G, N, n L, S)
    past = past.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)  # (B, N, L, S)
    own = q @ k.transpose(2, 3)  # (B, N, L, E)
    if later is not None:
        own = own.masked_fill(later, -torch.inf)
    weights = torch.cat([past, own], dim=-1).softmax(-1, dtype=torch.float32).to(v.dtype)
    past, own = weights.split([past.shape[3], end], dim=-1)
    attended = (by_group(past) @ past_v).unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
    return attended + own @ v


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """Each token looks at itself and at what is before it: q, k and v (B, N, L, D / N) -> (B, N, L, D / N).

    On a CPU a block of queries at a time, where that is faster: torch's fused kernel there knows no dropout, and in
    bf16 it is the slower one.
    """
    if q.device.type != "cpu" or (q.dtype == torch.float32 and not dropout):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    later = torch.ones(QUERIES, QUERIES, dtype=torch.bool).triu(1)
    attended = []
    for start in range(0, q.shape[2], QUERIES):
        some = q[:, :, start : start + QUERIES] / q.shape[3] ** 0.5
        end = start + some.shape[2]
        scores = some @ k[:, :, :end].transpose(2, 3)  # (B, N, queries, end)
        scores[..., start:].masked_fill_(later[: end - start, : end - start], -torch.inf)
        weights = F.dropout(scores.softmax(-1, dtype=torch.float32).to(v.dtype), dropout)
        attended.append(weights @ v[:, :, :end])
    return torch.cat(attended, dim=2)


def project(linear: nn.Linear, x: Tensor, cache: KVCache | None) -> Tensor:
    return linear(x) if cache is None else cache.products[linear](x)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864), the two halves of a head paired as in LLaMA's release.

    x (..., L, D / N), cos and sin (L, D / 2N).
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None, layer: int = 0) -> Tensor:
        qkv = project(self.qkv, x, cache).unflatten(-1, (3, self.heads, -1))
        qkv = qkv.permute(2, 0, 3, 1, 4)  # (3, B, N, L, D / N)
        (q, k), v = rotate(qkv[:2], *rotary), qkv[2]
        if cache is None or cache.length == 0:
            q, k = q.to(v.dtype), k.to(v.dtype)
            if cache is not None:
                cache.append(layer, k, v)
            h = causal_attention(q, k, v, self.dropout if self.training else 0.0)
        else:
            k, v = cache.append(layer, k, v)
            with torch.autocast(x.device.type, enabled=False):  # it would cast the whole cache at every token
                h = attend(q.to(k.dtype), k, v, cache, layer)
        return project(self.out, h.transpose(1, 2).flatten(2), cache)


class FeedForward(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        gate, up = project(self.gate_up, x, cache).chunk(2, dim=-1)
        return project(self.down, F.silu(gate) * up, cache)


class Block(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: KVCache | None = None, layer: int = 0) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, cache, layer)
        return x + self.feed_forward(self.feed_forward_norm(x), cache)


class Transformer(nn.Module):
    def __init__(self, config: TransformerConfig, vocabulary: int):
        super().__init__()
        if config.hidden_size % (2 * config.num_attention_heads):
            raise ValueError(
                f"hidden_size {config.hidden_size} must be an even multiple of "
                f"num_attention_heads {config.num_attention_heads}"
            )
        self.config = config
        self.embedding = nn.Embedding(vocabulary, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=config.initializer_range)
        # Most tokens repeat the one at the same place a frame before, so copying comes first. It is learned within a
        # hundred updates instead of thousands where reading and writing a token use equal vectors, attention hands on
        # what it reads, and queries and keys have a part common to all tokens, with which it can look for a distance.
        with torch.no_grad():
            self.embedding.weight += config.initializer_range * torch.randn(config.hidden_size)
            self.embedding.weight *= INIT_GAIN
            self.head.weight.copy_(self.embedding.weight)
            for module in self.modules():
                if isinstance(module, Attention):
                    module.qkv.weight[: 2 * config.hidden_size] *= INIT_GAIN
                    module.qkv.weight[2 * config.hidden_size :] = torch.eye(config.hidden_size)
                    module.out.weight.copy_(INIT_PASS_THROUGH * torch.eye(config.hidden_size))

    def _rotary(self, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        head = self.config.hidden_size // self.config.num_attention_heads
        # Rounded as in the official code: a last-bit difference here grows with the position.
        frequency = 1.0 / self.config.rope_theta ** (torch.arange(0, head, 2, device=device).float() / head)
        angle = torch.arange(start, start + length, device=device, dtype=torch.float32)[:, None] * frequency
        return angle.cos(), angle.sin()  # (L, D / 2N)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (B, L, D) -> hidden states after the final norm (B, L, D), each seeing only what is before it."""
        rotary = self._rotary(0, x.shape[1], x.device)
        for block in self.blocks:
            x = block(x, rotary)
        return self.norm(x)

    def new_cache(self, batch: int, slots: int) -> KVCache:
        device = self.embedding.weight.device
        dtype = self.embedding.weight.dtype
        # On a CPU, attention of one query over a bf16 cache takes twice the time of a float32 one (torch 2.13).
        if device.type != "cpu" and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        return KVCache(self, batch, slots, device, dtype)

    def step(self, x: Tensor, cache: KVCache) -> Tensor:
        """Read L more embeddings (B, L, D) behind what the cache holds; hidden states as `forward` would give."""
        rotary = self._rotary(cache.length, x.shape[1], x.device)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary, cache, layer)
        cache.own += x.shape[1]
        return self.norm(x)

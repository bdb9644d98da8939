"""Dreaming: roll the world model forward, one action at a time, without ever reading a token twice.

The context is tokenized and read once (keys and values stay in a cache for the whole rollout), the context's feature
maps and their cross-attention keys and values are computed once, and a frame costs n passes of the transformer: the
last token of a frame and the slot of the next are read in one pass, which gives the reward of the one and the first
token of the other.

Letters: B batch, K frames given, t frames dreamt so far, H horizon, n tokens a frame, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from world_model.transformer import FewRows

if TYPE_CHECKING:
    from world_model.model import IVideoGPT


class Dream(NamedTuple):
    frames: Tensor  # float (B, H, 3, height, width) in [0, 1]
    actions: Tensor  # float (B, H, A)
    rewards: Tensor | None  # float (B, H), environment units; None without a reward head
    tokens: Tensor  # int64 (B, H, n), ids of the whole vocabulary


def sample(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator | None) -> Tensor:
    """Draw one id a row: logits (B, V) -> int64 (B, 1). temperature 0 takes the likeliest."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    top, ids = logits.float().topk(min(top_k, logits.shape[-1]), dim=-1)
    # The largest of p / exponential noise is a draw from p; torch.multinomial would wait for the device at every token.
    chances = (top / temperature).softmax(-1)
    drawn = (chances / torch.empty_like(chances).exponential_(generator=generator)).argmax(-1, keepdim=True)
    return ids.gather(-1, drawn)


@torch.no_grad()
def imagine(
    model: IVideoGPT,
    context: Tensor,
    policy: Tensor | Callable[[Tensor], Tensor],
    horizon: int,
    temperature: float = 1.0,
    top_k: int = 100,
    generator: torch.Generator | None = None,
) -> Dream:
    """Roll out `horizon` frames in evaluation mode.

    Args:
        context: float (B, K, 3, H, W) in [0, 1], K >= context_length. The last context_length frames are tokenized,
            the policy sees them all.
        policy: float (B, horizon, A), fixed actions; or a callable from the frames so far, (B, K+t, 3, H, W) in
            [0, 1], to the next action (B, A).
        temperature: 0 is greedy. top_k: draw among the k likeliest. Only dynamics tokens can be drawn.
        generator: of the randomness of the draws.
    """
    training, _ = model.training, model.eval()
    try:
        return _rollout(model, context, policy, horizon, temperature, top_k, generator)
    finally:
        model.train(training)


def _rollout(
    model: IVideoGPT,
    context: Tensor,
    policy: Tensor | Callable[[Tensor], Tensor],
    horizon: int,
    temperature: float,
    top_k: int,
    generator: torch.Generator | None,
) -> Dream:
    tokenizer, transformer, layout = model.tokenizer, model.transformer, model.layout
    batch, given = context.shape[:2]
    if given < layout.context_length:
        raise ValueError(f"a dream needs {layout.context_length} context frames, got {given}")
    first, size = layout.first_dynamics_id, layout.dynamics_codes
    # Nothing but a dynamics token can follow: the rest is not scored.
    head = FewRows(transformer.head.weight[first : first + size], batch)

    # Read the context once.
    prefix, _ = tokenizer.tokenize(context[:, -layout.context_length :])
    context_ids, _ = layout.split(prefix)
    memory = tokenizer.decoding_memory(tokenizer.quantize.embedding(context_ids))
    cache = transformer.new_cache(batch, layout.length(layout.context_length + horizon))
    transformer.step(transformer.embedding(prefix), cache)
    slot = transformer.embedding(prefix.new_full((batch, 1), layout.sdf))  # (B, 1, D)

    frames = context.new_empty(batch, given + horizon, *context.shape[2:])
    frames[:, :given] = context
    actions, rewards, tokens = [], [], []
    unread = slot[:, :0]  # embeddings that the transformer has not seen yet
    for t in range(horizon):
        # Act on the frames so far.
        action = policy(frames[:, : given + t]) if callable(policy) else policy[:, t]
        actions.append(action)
        opened = slot if model.action_linear is None else slot + model.action_linear(action)[:, None]

        # Draw the n tokens of the next frame. The first pass also reads the last token of the frame before.
        hidden = transformer.step(torch.cat([unread, opened], dim=1), cache)
        if t and model.reward_linear is not None:
            rewards.append(model.reward(hidden[:, 0]))
        drawn = []
        for i in range(layout.dynamics_tokens):
            if i:
                hidden = transformer.step(unread, cache)
            drawn.append(sample(head(hidden[:, -1]), temperature, top_k, generator))
            unread = transformer.embedding(drawn[-1] + first)
        ids = torch.cat(drawn, dim=1)  # (B, n)
        tokens.append(ids + first)

        # See it.
        codes = tokenizer.dynamics_quantize.embedding(ids)[:, None]  # (B, 1, n, D)
        picture = tokenizer.decode_future(codes, memory, context[:, -1])
        frames[:, given + t] = picture[:, 0].clamp(0, 1)

    if model.reward_linear is not None:
        rewards.append(model.reward(transformer.step(unread, cache)[:, -1]))
    return Dream(
        frames=frames[:, given:],
        actions=torch.stack(actions, dim=1),
        rewards=torch.stack(rewards, dim=1) if rewards else None,
        tokens=torch.stack(tokens, dim=1),
    )

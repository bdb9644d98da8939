"""Dreams of iVideoGPT, one action at a time, without ever reading a token twice.

The context is tokenized and read once (keys and values stay in a cache for the whole rollout), the context's feature
maps and their cross-attention keys and values are computed once, and a frame costs n passes of the transformer: the
last token of a frame and the slot of the next are read in one pass, which gives the heads of the one and the first
token of the other. So a step's heads are known with the next step, or when somebody asks for them; frames are decoded
when somebody asks as well.

Letters: B rows (dreams), G starts with B / G rows each, K frames given, t frames dreamt so far, n tokens a frame, A
action, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from world_model.ivideogpt.network import VideoGPT, evaluation_mode
from world_model.ivideogpt.transformer import PackedLinear

COLDEST = 1e-6  # of temperatures at which logits can be divided by it
ROOM = 16  # frames that a rollout has room for at first when nobody says how long it will be


def sample(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator | None) -> Tensor:
    """Draw one id a row: logits (B, V) -> int64 (B, 1). temperature 0 takes the argmax."""
    if temperature < COLDEST:
        return logits.argmax(-1, keepdim=True)
    top, ids = logits.float().topk(min(top_k, logits.shape[-1]), dim=-1)
    # The largest of p / exponential noise is a draw from p; torch.multinomial would wait for the device at every token.
    chances = (top / temperature).softmax(-1)
    drawn = (chances / torch.empty_like(chances).exponential_(generator=generator)).argmax(-1, keepdim=True)
    return ids.gather(-1, drawn)


class TokenStep:
    """One imagined decision of B dreams (`world_model.api.Step`)."""

    def __init__(self, rollout: TokenRollout, index: int, tokens: Tensor) -> None:
        self.tokens = tokens  # int64 (B, n), ids of the whole vocabulary
        self._index = index
        self._rollout: TokenRollout | None = rollout  # until the heads are known
        self._frames: Callable[[int], Tensor] = rollout.frame
        self._heads: dict[str, Tensor] = {}

    @property
    def frame(self) -> Tensor:
        """Float (B, 3, H, W) in [0, 1]."""
        return self._frames(self._index)

    @property
    def heads(self) -> dict[str, Tensor]:
        """(B,) each, in environment units."""
        if self._rollout is not None:
            self._rollout.read_last_token()
        return self._heads

    def know(self, heads: dict[str, Tensor]) -> None:
        """Take over the heads, once they are read."""
        self._heads, self._rollout = heads, None


class TokenRollout:
    """B dreams that go on side by side (`world_model.api.Rollout`).

    A dream longer than the transformer's positions begins again from its own last K frames; `anchors` lists the numbers
    of the dreamt frames at which that happened.

    Args:
        context: float (B, K, 3, H, W) in [0, 1], K at least the model's context length.
        temperature, top_k, generator: of the draws.
        horizon: frames to make room for; it grows if there are more.
        guard: around everything that is computed: the precision, and whatever keeps the weights still.
    Raises:
        ValueError: too few frames given, or a transformer without room for one frame.
    """

    def __init__(
        self,
        model: VideoGPT,
        context: Tensor,
        temperature: float = 1.0,
        top_k: int = 100,
        generator: torch.Generator | None = None,
        horizon: int | None = None,
        guard: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        given, layout = context.shape[1], model.layout
        if given < layout.context_length:
            raise ValueError(f"a dream needs {layout.context_length} context frames, got {given}")
        positions, least = model.transformer.config.max_position_embeddings, layout.length(layout.context_length + 1)
        if least > positions:
            raise ValueError(f"max_position_embeddings={positions} has no room for a dreamt frame: it takes {least}")
        self.anchors: list[int] = []
        self._model, self._guard = model, guard
        self._temperature, self._top_k, self._generator = temperature, top_k, generator
        self._given, self._dreamt, self._decoded = given, 0, 0
        self._room = horizon or ROOM
        self._frames = context.new_empty(len(context), given + self._room, *context.shape[2:])
        self._frames[:, :given] = context
        self._pending: TokenStep | None = None  # the last step, while nobody knows its heads
        with self._computing():
            self._read_context(context)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with self._guard(), evaluation_mode(self._model), torch.no_grad():
            yield

    def _read_context(self, context: Tensor) -> None:
        """Begin from the last frames of (B, K, 3, H, W): tokenize them and read the tokens once."""
        model, layout = self._model, self._model.layout
        tokenizer, transformer = model.tokenizer, model.transformer
        rows, first = len(context), layout.first_dynamics_id
        # Nothing but a dynamics token can follow: the rest is not scored.
        self._score = PackedLinear(transformer.head.weight[first : first + layout.dynamics_codes], rows)
        self._read = context[:, -layout.context_length :]  # (G, K, 3, H, W)
        prefix, _ = tokenizer.tokenize(self._read)
        context_ids, _ = layout.split(prefix)
        self._memory = tokenizer.decoding_memory(tokenizer.quantize.embedding(context_ids))
        frames = min(self._room, self._fitting())
        self._cache = transformer.new_cache(rows, layout.length(layout.context_length + frames))
        transformer.step(transformer.embedding(prefix), self._cache)
        self._slot = transformer.embedding(prefix.new_full((rows, 1), layout.sdf))  # (B, 1, D)
        self._unread = self._slot[:, :0]  # embeddings that the transformer has not seen yet
        self._codes: list[Tensor] = []  # (B, n) of each frame since
        self._anchor = self._dreamt  # frames dreamt before

    def _fitting(self) -> int:
        """Future frames that the transformer's positions hold."""
        layout = self._model.layout
        return (self._model.transformer.config.max_position_embeddings - layout.prefix) // layout.stride

    @property
    def steps_left(self) -> int:
        """Steps before the dream begins again from its own last frames."""
        return self._fitting() - len(self._codes)

    @property
    def frames(self) -> Tensor:
        """Float (B, K+t, 3, H, W) in [0, 1]: the frames given and those dreamt so far. Not to be written to."""
        self._decode()
        return self._frames[:, : self._given + self._dreamt]

    def frame(self, index: int) -> Tensor:
        """The dreamt frame `index`, counted from 0: float (B, 3, H, W)."""
        if index > self._decoded:  # those before may never be needed
            return self._see(self._codes[index - self._anchor])
        self._decode()
        return self._frames[:, self._given + index]

    def step(self, action: Tensor) -> TokenStep:
        """Go on by one decision, under actions (B, A)."""
        model, layout = self._model, self._model.layout
        transformer, first = model.transformer, layout.first_dynamics_id
        with self._computing():
            if not self.steps_left:
                self._begin_again()
            opened = self._slot if model.action_linear is None else self._slot + model.action_linear(action)[:, None]
            # Draw the n tokens of the frame. The first pass also reads the last token of the frame before.
            hidden = transformer.step(torch.cat([self._unread, opened], dim=1), self._cache)
            if self._pending is not None:
                self._pending.know(model.read_heads(hidden[:, 0]))
            drawn = []
            for i in range(layout.dynamics_tokens):
                if i:
                    hidden = transformer.step(self._unread, self._cache)
                drawn.append(sample(self._score(hidden[:, -1]), self._temperature, self._top_k, self._generator))
                self._unread = transformer.embedding(drawn[-1] + first)
            self._codes.append(torch.cat(drawn, dim=1))
        self._dreamt += 1
        self._pending = TokenStep(self, self._dreamt - 1, self._codes[-1] + first)
        return self._pending

    def read_last_token(self) -> None:
        """Tell the last step its heads."""
        if self._pending is None:
            return
        with self._computing():
            hidden = self._model.transformer.step(self._unread, self._cache)[:, -1]
            self._pending.know(self._model.read_heads(hidden))
        self._pending, self._unread = None, self._slot[:, :0]

    def _begin_again(self) -> None:
        self.read_last_token()
        self.anchors.append(self._dreamt)
        self._read_context(self.frames)

    def _decode(self) -> None:
        """See every frame that nobody has looked at yet."""
        needed = self._given + self._dreamt
        if needed > self._frames.shape[1]:
            more = self._frames.new_empty(len(self._frames), 2 * needed, *self._frames.shape[2:])
            more[:, : self._given + self._decoded] = self._frames[:, : self._given + self._decoded]
            self._frames = more
        while self._decoded < self._dreamt:
            self._frames[:, self._given + self._decoded] = self._see(self._codes[self._decoded - self._anchor])
            self._decoded += 1

    def _see(self, codes: Tensor) -> Tensor:
        """Dynamics codes (B, n) of one frame -> float (B, 3, H, W) in [0, 1]."""
        tokenizer = self._model.tokenizer
        with self._computing():
            by_start = tokenizer.dynamics_quantize.embedding(codes).unflatten(0, (len(self._read), -1))
            return (
                tokenizer.decode_future(by_start, self._memory, self._read[:, -1])
                .flatten(0, 1)
                .clamp(0, 1)
                .to(self._frames.dtype)
            )

    def encode(self, frames: Tensor) -> Tensor:
        """Tokens of real frames; see `world_model.api.TokenizedRollout`."""
        with self._computing():
            tokens, _ = self._model.tokenizer.tokenize(torch.cat([self._read, frames[:, None]], dim=1))
            return self._model.layout.split(tokens)[1][:, 0] + self._model.layout.first_dynamics_id

    def codes(self, tokens: Tensor) -> Tensor:
        """Code vectors of tokens; see `world_model.api.TokenizedRollout`."""
        return self._model.tokenizer.dynamics_quantize.embedding(tokens - self._model.layout.first_dynamics_id).detach()

    def fork(self, temperature: float | None = None) -> TokenRollout:
        """A copy that can go another way, at another `temperature` if given. Both draw from one generator."""
        self.read_last_token()
        other = copy.copy(self)
        other._temperature = self._temperature if temperature is None else temperature
        other.anchors, other._codes = list(self.anchors), list(self._codes)
        other._frames, other._cache = self._frames.clone(), self._cache.fork()
        return other

    def expand(self, n: int) -> TokenRollout:
        """B*n dreams, n from each of these, which share what was read so far; this one can still go on."""
        self.read_last_token()
        other, frames = copy.copy(self), self.frames  # of these, nothing is left to decode
        other.anchors = list(self.anchors)
        other._codes = [codes.repeat_interleave(n, 0) for codes in self._codes]
        other._frames = frames.repeat_interleave(n, 0)
        other._slot = self._slot.repeat_interleave(n, 0)
        other._unread = other._slot[:, :0]
        with self._computing():
            layout = self._model.layout
            other._cache = self._cache.expand(n, layout.stride * min(self._room, self.steps_left))
            first = layout.first_dynamics_id
            weight = self._model.transformer.head.weight[first : first + layout.dynamics_codes]
            other._score = PackedLinear(weight, len(other._slot))
        return other

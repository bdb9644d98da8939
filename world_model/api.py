"""The contract of a world model, and dreams made through it.

    rollout = world.start(context)             # B dreams that go on side by side
    step = rollout.step(action)                # step.frame (B, 3, H, W), step.heads["reward"] (B,)
    candidates = rollout.expand(64)            # 64 futures from each of them, one shared past
    other = rollout.fork()                     # a copy that can go another way
    dream = imagine(world, context, policy, horizon)

Training, validation, planning and every viewer use `Rollout` and nothing below it. Behind it stand iVideoGPT, a
one-step predictor and the simulator itself. How actions and rewards line up with frames is drawn in `agents/api.py`.

Letters: B dreams, K frames given, t frames dreamt so far, H horizon, T frames of a clip, A action, n tokens a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypedDict, Unpack, runtime_checkable

import numpy as np
import torch
from torch import Tensor


class WeightsError(ValueError):
    """A checkpoint that is missing, damaged, or of other sizes than the model."""


class Episode(NamedTuple):
    """One episode, real or imagined, of T decisions: `actions[i]` leads from frame P + i to the next, `rewards[i]` is
    what it earned.

    `prefix` frames precede that of the first decision, so that an imagined one can begin from a full frame stack.
    """

    frames: np.ndarray  # uint8 (P + T + 1, C, H, W)
    actions: np.ndarray  # float32 (T, A)
    rewards: np.ndarray  # float32 (T,)
    terminated: bool = False  # ended by the task itself, not by a time limit, the end of a rollout or of a video
    prefix: int = 0  # P
    successes: np.ndarray | None = None  # float32 (T,), 1 where the decision touched success; None: not recorded
    seed: int | None = None  # of the simulator's reset; None: not recorded, or imagined


class Origin(NamedTuple):
    """The decision of a recorded episode that a dream begins at: all that restoring a simulator there needs."""

    seed: int  # of the simulator's reset
    actions: np.ndarray  # float32 (T, A), of the whole episode
    decision: int  # of its T; those before it were taken


class StartOptions(TypedDict, total=False):
    """What a dream can be begun with; a model reads of it what it knows."""

    temperature: float  # of the draws, 0 is greedy; 1 by default
    top_k: int  # likeliest ones that are drawn from; 100 by default
    generator: torch.Generator | None  # of the draws; torch's global one by default
    origins: Sequence[Origin] | None  # B of them, for a model that restores the simulator


class Step(Protocol):
    """One imagined decision. A model may work frame and heads out only when they are asked for."""

    @property
    def frame(self) -> Tensor:
        """Float (B, 3, H, W) in [0, 1]."""
        ...

    @property
    def heads(self) -> Mapping[str, Tensor]:
        """What the decision earned, (B,) each, in environment units: "reward", "success" (a probability), ..."""
        ...

    @property
    def tokens(self) -> Tensor | None:
        """int64 (B, n), ids of the whole vocabulary; None of a model without tokens."""
        ...


class Rollout(Protocol):
    """B dreams that go on side by side; made by `WorldModel.start`."""

    @property
    def frames(self) -> Tensor:
        """Float (B, K+t, 3, H, W) in [0, 1]: the frames given and those dreamt so far. Not to be written to."""
        ...

    @property
    def steps_left(self) -> int | None:
        """Steps before the dream begins again from its own last frames; None where it never has to."""
        ...

    def step(self, action: Tensor) -> Step:
        """Go on by one decision, under actions (B, A)."""
        ...

    def expand(self, n: int) -> Rollout:
        """B*n dreams, n from each of these (those of one start lie side by side); this one can still go on."""
        ...

    def fork(self, temperature: float | None = None) -> Rollout:
        """A copy that can go another way, at another `temperature` if given. Both draw from one generator."""
        ...


@runtime_checkable
class TokenizedRollout(Rollout, Protocol):
    """A `Rollout` of a model whose frames are tokens, made by its `start` and not yet stepped."""

    def encode(self, frames: Tensor) -> Tensor:
        """The tokens that real frames (B, 3, H, W) in [0, 1] would have as the next ones: int64 (B, n), as a step's."""
        ...

    def codes(self, tokens: Tensor) -> Tensor:
        """Their vectors in the codebook, float (..., n, D)."""
        ...


class PlainStep(NamedTuple):
    """A `Step` of which everything is there."""

    frame: Tensor
    heads: dict[str, Tensor]
    tokens: Tensor | None = None


class FrameRollout:
    """A `Rollout` of a model that predicts the next frame from the last ones and an action.

    Args:
        context: float (B, K, 3, H, W) in [0, 1].
        predict: frames so far (B, K+t, 3, H, W), action (B, A) -> next frame (B, 3, H, W) in [0, 1], heads (B,) each.
    """

    steps_left = None

    def __init__(self, context: Tensor, predict: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]) -> None:
        self.frames, self._predict = context, predict

    def step(self, action: Tensor) -> PlainStep:
        frame, heads = self._predict(self.frames, action)
        self.frames = torch.cat([self.frames, frame[:, None]], dim=1)
        return PlainStep(frame, heads)

    def expand(self, n: int) -> FrameRollout:
        return FrameRollout(self.frames.repeat_interleave(n, 0), self._predict)

    def fork(self, temperature: float | None = None) -> FrameRollout:
        return FrameRollout(self.frames, self._predict)


class Clips(NamedTuple):
    """A batch of real clips. Buffers and data sets give uint8 frames, models take floats."""

    frames: Tensor  # (B, T, 3, H, W), uint8 or float in [0, 1]
    actions: Tensor  # float (B, T, A); the last one, which leads out of the clip, is not used
    rewards: Tensor  # float (B, T), environment units; likewise
    successes: Tensor | None = None  # float (B, T), 1 where the decision touched success, NaN where nobody noted it
    continues: Tensor | None = None  # float (B, T), 0 where the decision ended the task, else 1

    def map(self, function: Callable[[Tensor], Tensor]) -> Clips:
        """The same of every field that is there."""
        return Clips(*(None if field is None else function(field) for field in self))  # type: ignore[arg-type]

    def targets(self) -> dict[str, Tensor]:
        """What the heads learn from, under their names."""
        known = {"reward": self.rewards, "success": self.successes, "continue": self.continues}
        return {name: target for name, target in known.items() if target is not None}


def is_due(frame: int, every_frames: int, action_repeat: int) -> bool:
    """Whether a multiple of `every_frames` was reached with the decision that ended at `frame`."""
    return frame // every_frames > (frame - action_repeat) // every_frames


class ClipSampler(Protocol):
    """Where a world model's real clips come from."""

    def clips(self, batch_size: int, length: int) -> Clips:
        """Windows of `length` frames, on the world model's device."""
        ...


class WorldModel(Protocol):
    """What the loops rely on. `sample` and `update` are two calls so that learning can go on in another thread: what is
    drawn, and when, is then the acting thread's alone."""

    @property
    def device(self) -> torch.device: ...

    @property
    def context_length(self) -> int:
        """Frames that a dream begins from at least."""
        ...

    @property
    def heads(self) -> Collection[str]:
        """Names of what a step tells beside its frame."""
        ...

    def start(self, context: Tensor, *, horizon: int | None = None, **options: Unpack[StartOptions]) -> Rollout:
        """Begin to dream, in evaluation mode.

        Args:
            context: float (B, K, 3, H, W) in [0, 1], oldest first.
            horizon: steps that will be made, if known; not a limit.
        Raises:
            ValueError: the context has too few frames.
        """
        ...

    def sample(self, clips: ClipSampler, frame: int | None = None) -> tuple[Any, ...] | None:
        """Draw what the updates due with the decision that ended at `frame` learn from; None if none is due.

        Without a frame every part is due.
        """
        ...

    def update(self, *batch: Any) -> dict[str, Tensor]:
        """Learn from what `sample` returned; detached scalars, still on the device."""
        ...

    def frozen(self) -> AbstractContextManager[None]:
        """While the body runs nothing is learned: an update under way is waited for, another thread's next one waits.

        Never dream beside learning without it: a step waits for an update under way, but between steps a part of the
        weights would move (on a CPU some are copied when the dream begins).
        """
        ...

    def diagnose(self, clips: Clips, dream: Dream) -> dict[str, float]:
        """What only this kind of model can say of held-out clips and of the dream of their future frames."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Every weight under a flat name."""
        ...

    def load_weights(self, weights: dict[str, Tensor]) -> None: ...

    def state(self) -> dict[str, Any]:
        """Everything but the weights; loads with `weights_only=True`."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...

    def save_pretrained(self, folder: Any, dtype: torch.dtype = torch.float32) -> None:
        """Leave the model in `folder`, its weights as `dtype`, for other runs to begin from, if it has any to leave."""
        ...

    def close(self) -> None:
        """Free what it holds besides memory."""
        ...


class Dream(NamedTuple):
    frames: Tensor  # float (B, H, 3, height, width) in [0, 1]
    actions: Tensor  # float (B, H, A)
    heads: dict[str, Tensor]  # float (B, H) each, environment units
    tokens: Tensor | None  # int64 (B, H, n), ids of the whole vocabulary

    @property
    def rewards(self) -> Tensor | None:
        """Float (B, H), environment units; None of a model that predicts none."""
        return self.heads.get("reward")


class Dreamable(Protocol):
    """The part of a world model that `imagine` needs."""

    def start(self, context: Tensor, *, horizon: int | None = None, **options: Unpack[StartOptions]) -> Rollout: ...


@torch.no_grad()
def imagine(
    world: Dreamable,
    context: Tensor,
    policy: Tensor | Callable[[Tensor], Tensor],
    horizon: int,
    **options: Unpack[StartOptions],
) -> Dream:
    """Dream `horizon` frames ahead.

    Args:
        context: float (B, K, 3, H, W) in [0, 1]; the policy sees all of them, the model as many as it reads.
        policy: float (B, horizon, A), fixed actions; or a callable from the frames so far, (B, K+t, 3, H, W) in
            [0, 1], to the next action (B, A). It runs outside the model's reduced precision.
    """
    rollout = world.start(context, horizon=horizon, **options)
    steps, actions = [], []
    for t in range(horizon):
        actions.append(policy(rollout.frames) if callable(policy) else policy[:, t])
        steps.append(rollout.step(actions[-1]))
    frames = rollout.frames[:, context.shape[1] :]
    heads = {name: torch.stack([step.heads[name] for step in steps], dim=1) for name in steps[-1].heads}
    tokens = [step.tokens for step in steps if step.tokens is not None]
    return Dream(frames, torch.stack(actions, dim=1), heads, torch.stack(tokens, dim=1) if tokens else None)

"""What an agent is, what it is fed, and how time is numbered everywhere in this project.

Time is drawn here once; every other file points at this drawing::

    decision          0           1           2                 T-1
                 +---------+ +---------+ +---------+  ...  +-----------+
    frame        f0          f1          f2          f3    f(T-1)       f(T)
    action           a0          a1          a2                 a(T-1)
    reward           r0          r1          r2                 r(T-1)

    a(i) is taken at frame f(i) and leads to f(i+1); r(i) is what that action earned.
    An episode of T decisions holds T+1 frames, T actions and T rewards.
    One decision is `action_repeat` simulator frames; f(i) is the image at its start.

    n-step transition at decision i, with m = min(n, T - i) so that it never leaves the episode:

        obs       f(i-2) f(i-1) f(i)            stacked, oldest first; f(0) repeated where nothing precedes it
        action    a(i)
        reward    r(i) + g r(i+1) + ... + g^(m-1) r(i+m-1)
        discount  g^m, or 0 when the episode terminated at f(i+m)  (a time limit is no termination)
        next_obs  f(i+m-2) f(i+m-1) f(i+m)

    A stream is episodes laid end to end. Its steps are frames, so a step's action and reward are those that follow it:

        step      f0 f1 ... f(T-1) f(T)  f0' f1' ...
        action    a0 a1 ... a(T-1)  0    a0' a1' ...      0 behind the last frame of an episode; the reward likewise
        is_first  1  0      0       0    1   0
        is_last   0  0      0       1    0   0            is_terminal: the same where the episode terminated

Letters: B batch, L steps of a window, C stacked channels, H W image, A action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor


class InvalidConfig(ValueError):
    """An agent's setting that cannot be used; the message says which one and what would do."""


class StateMismatch(ValueError):
    """A saved state that belongs to an agent of other sizes."""


class TransitionBatch(NamedTuple):
    """Transitions as drawn above. Images are uint8; each network scales its own input."""

    obs: Tensor  # uint8 (B, C, H, W)
    action: Tensor  # float32 (B, A)
    reward: Tensor  # float32 (B, 1), summed over the n steps
    discount: Tensor  # float32 (B, 1), gamma^m * (1 - terminated)
    next_obs: Tensor  # uint8 (B, C, H, W)

    def to(self, device: torch.device | str) -> TransitionBatch:
        """The same batch on `device`."""
        return TransitionBatch(*(field.to(device, non_blocking=True) for field in self))

    @staticmethod
    def cat(batches: Sequence[TransitionBatch]) -> TransitionBatch:
        """Joins batches along B, in the order given (real and imagined ones, say)."""
        return TransitionBatch(*(torch.cat(fields) for fields in zip(*batches, strict=True)))


class StreamBatch(NamedTuple):
    """Windows of a stream as drawn above; one may run from an episode into the next."""

    frames: Tensor  # uint8 (B, L, 3, H, W)
    actions: Tensor  # float32 (B, L, A)
    rewards: Tensor  # float32 (B, L)
    is_first: Tensor  # bool (B, L)
    is_last: Tensor  # bool (B, L)
    is_terminal: Tensor  # bool (B, L)
    slots: Tensor  # int64 (B, L), where the step lies in the replay: the same step has the same slot in every window

    def to(self, device: torch.device | str) -> StreamBatch:
        """The same batch on `device`."""
        return StreamBatch(*(field.to(device, non_blocking=True) for field in self))


class Agent(Protocol):
    """The contract that the loops in `mbrl/` rely on."""

    def begin_episode(self, eval_mode: bool) -> None:
        """The next `act` with this `eval_mode` sees the first observations of B episodes; their number fixes B.

        They run side by side: until the next `begin_episode` row i of `act` belongs to episode i, and an episode
        that is over keeps its row (any observation will do, its action is ignored). An agent with a memory forgets
        the episodes before. Training and evaluation have memories of their own.
        """
        ...

    def act(self, obs: Tensor, decision: int, eval_mode: bool) -> Tensor:
        """Actions float32 (B, A) in [-1, 1] for obs uint8 (B, C, H, W); no row depends on another row's observation.

        `decision` counts the decisions taken so far in the run (it drives exploration schedules). With
        `eval_mode` the agent acts without exploring and leaves its training randomness untouched.
        """
        ...

    def update(self, batch: Any, decision: int) -> dict[str, Tensor]:
        """One learning step; returns a flat dict of detached scalars, still on the device.

        `batch` is what the agent's loop samples: a `TransitionBatch`, or a `StreamBatch` for one with a memory.
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """Every weight under a flat name: all that acting without exploring needs. Empty if there are none."""
        ...

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes over what `weights()` returned, on whatever device; raises `StateMismatch` if the sizes differ."""
        ...

    def state(self) -> dict[str, Any]:
        """What continuing bit for bit needs besides the weights; survives `torch.save` and a `weights_only` load."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes over what `state()` returned on a device of the same kind."""
        ...


@runtime_checkable
class BehaviourCloner(Protocol):
    """What an agent has besides that imitates demonstrations. The loop sets `demonstrations` once, if there are any."""

    demonstrations: Callable[[int], TransitionBatch] | None  # draws so many transitions

    def clone(self) -> Iterator[dict[str, Tensor]]:
        """Behaviour cloning before the first frame: one learning step an item, which is as `update`'s result."""
        ...

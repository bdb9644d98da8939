"""The simulator itself as a world model: exact dreams, the ceiling of what any world model can give.

A dream begins at a decision of a recorded episode (`Origin`): the episode is played again without drawing, from the
simulator's seed and the actions taken, and every moment of it is kept, so the next dream from it starts at once. The
same simulator is the real side beside a dream.

Letters: B dreams, K frames given, A action.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

import envs
from envs.wrappers import Snapshot
from mbrl.rollout import to_float
from world_model import Clips, Dream, Origin
from world_model.api import ClipSampler, StartOptions

KEPT = 128  # episodes whose moments are kept, of Meta-world 0.8 MB each


class SimulatorStep:
    """A decision that was simulated, and is drawn if somebody looks (`world_model.api.Step`)."""

    tokens = None

    def __init__(self, rollout: "SimulatorRollout", index: int, heads: dict[str, Tensor]) -> None:
        self.heads, self._rollout, self._index = heads, rollout, index

    @property
    def frame(self) -> Tensor:
        """Float (B, 3, H, W) in [0, 1]."""
        return self._rollout.draw(self._index)


class SimulatorRollout:
    """B moments of one environment that go on side by side (`world_model.api.Rollout`)."""

    steps_left = None

    def __init__(self, env: envs.PixelEnv, given: Tensor, moments: Sequence[Snapshot]) -> None:
        self._env, self._given = env, given
        self._moments = [list(moments)]  # of the start, and after each step; B each
        self._drawn: dict[int, Tensor] = {}  # steps that were looked at

    @property
    def frames(self) -> Tensor:
        """Float (B, K+t, 3, H, W) in [0, 1]: the frames given and those since."""
        since = [self.draw(index)[:, None] for index in range(len(self._moments) - 1)]
        return torch.cat([self._given, *since], dim=1)

    def draw(self, index: int) -> Tensor:
        """What is seen after step `index`, counted from 0."""
        if index not in self._drawn:
            moments = self._moments[index + 1]
            frames = [self._env.restore(moment._replace(states=moment.states[-1:], stack=None)) for moment in moments]
            self._drawn[index] = to_float(torch.from_numpy(np.stack(frames))).to(self._given.device)
        return self._drawn[index]

    def step(self, action: Tensor) -> SimulatorStep:
        moments, rewards, successes = [], [], []
        for moment, chosen in zip(self._moments[-1], action.float().cpu().numpy(), strict=True):
            self._env.restore(moment)
            reward, _, _, info = self._env.step_unseen(chosen)
            moments.append(self._env.snapshot()._replace(stack=moment.stack))
            rewards.append(reward)
            successes.append(info["success"])
        self._moments.append(moments)
        device = self._given.device
        heads = {"reward": torch.tensor(rewards, device=device), "success": torch.tensor(successes, device=device)}
        return SimulatorStep(self, len(self._moments) - 2, heads)

    def expand(self, n: int) -> "SimulatorRollout":
        moments = [moment for moment in self._moments[-1] for _ in range(n)]
        return SimulatorRollout(self._env, self.frames.repeat_interleave(n, 0), moments)

    def fork(self, temperature: float | None = None) -> "SimulatorRollout":
        return SimulatorRollout(self._env, self.frames, self._moments[-1])


class SimulatorWorld:
    """An environment as a `world_model.api.WorldModel`; it has nothing to learn.

    Args:
        env: of the task; for this alone, as dreams move it.
    """

    heads = ("reward", "success")
    context_length = 1

    def __init__(self, env: envs.PixelEnv, device: torch.device) -> None:
        self._env, self.device = env, device
        self._episodes: OrderedDict[tuple[int, bytes], list[Snapshot]] = OrderedDict()

    def start(
        self, context: Tensor, *, horizon: int | None = None, **options: Unpack[StartOptions]
    ) -> SimulatorRollout:
        """Begin at `origins`, B of them; see `world_model.api.WorldModel.start`. Nothing is drawn at random.

        Raises:
            ValueError: without origins: frames alone do not say where everything is.
        """
        origins = options.get("origins")
        if origins is None or len(origins) != len(context):
            raise ValueError("the simulator restores recorded decisions: give an origin for each dream")
        return SimulatorRollout(self._env, context, [self._moment(origin) for origin in origins])

    def _moment(self, origin: Origin) -> Snapshot:
        """The moment of an origin, whose episode is played again if it was not lately."""
        key = (origin.seed, origin.actions.tobytes())
        if key not in self._episodes:
            # Nothing of the stack is looked at, so nothing need be drawn for it.
            blank = np.zeros(self._env.observation_space.shape, np.uint8)
            played = self._env.replay(origin.seed, origin.actions)
            self._episodes[key] = [moment._replace(states=moment.states[-1:], stack=blank) for moment in played]
            if len(self._episodes) > KEPT:
                self._episodes.popitem(last=False)
        return self._episodes[key][origin.decision]

    def sample(self, clips: ClipSampler, frame: int | None = None) -> None:
        """Nothing is ever due."""

    def update(self, *batch: Any) -> dict[str, Tensor]:
        return {}

    @contextmanager
    def frozen(self) -> Iterator[None]:
        yield

    def diagnose(self, clips: Clips, dream: Dream) -> dict[str, float]:
        return {}

    def weights(self) -> dict[str, Tensor]:
        return {}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """It has none."""

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Moments are made again when asked for."""

    def save_pretrained(self, folder: Any, dtype: torch.dtype = torch.float32) -> None:
        """There is nothing to leave."""

    def close(self) -> None:
        self._env.close()

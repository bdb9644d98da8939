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
from world_model.api import ClipSampler, PlainStep, StartOptions

KEPT = 128  # episodes whose moments are kept, of Meta-world 0.8 MB each


class SimulatorRollout:
    """B moments of one environment that go on side by side (`world_model.api.Rollout`)."""

    steps_left = None

    def __init__(self, env: envs.PixelEnv, context: Tensor, moments: Sequence[Snapshot]) -> None:
        self.frames, self._env, self._moments = context, env, list(moments)

    def step(self, action: Tensor) -> PlainStep:
        frames, rewards, successes = [], [], []
        for i, (moment, chosen) in enumerate(zip(self._moments, action.float().cpu().numpy(), strict=True)):
            self._env.restore(moment)
            obs, reward, _, _, info = self._env.step(chosen)
            self._moments[i] = self._env.snapshot()
            frames.append(obs[-3:])
            rewards.append(reward)
            successes.append(info["success"])
        device = self.frames.device
        frame = to_float(torch.from_numpy(np.stack(frames))).to(device)
        self.frames = torch.cat([self.frames, frame[:, None]], dim=1)
        heads = {"reward": torch.tensor(rewards, device=device), "success": torch.tensor(successes, device=device)}
        return PlainStep(frame, heads)

    def expand(self, n: int) -> "SimulatorRollout":
        moments = [moment for moment in self._moments for _ in range(n)]
        return SimulatorRollout(self._env, self.frames.repeat_interleave(n, 0), moments)

    def fork(self, temperature: float | None = None) -> "SimulatorRollout":
        return SimulatorRollout(self._env, self.frames, self._moments)


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

    def save_pretrained(self, folder: Any) -> None:
        """There is nothing to leave."""

    def close(self) -> None:
        self._env.close()

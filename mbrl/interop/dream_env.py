"""The dreams of a saved world model as a gymnasium environment, for agents of other libraries to train in.

    env = gymnasium.make("mbrl.interop.dream_env:Dream-v0", model="runs/coffee-push/mbpo/1")

An episode begins at a moment that was really recorded; from there on frames, rewards and ends are the model's.
Observations and actions are those of every environment here (`envs.PixelEnv`).

Letters: K frame stack, A action, H W height and width.
"""

from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from envs import PixelEnv
from envs.wrappers import FrameResult
from mbrl.experiment import checkpoints
from mbrl.interop.recordings import Recordings
from mbrl.predict.models import load_predictor
from mbrl.rollout import to_float, to_uint8
from world_model.api import Rollout
from world_model.schema import UserError

HORIZON, FRAME_STACK = 10, 3  # where no run says it


class DreamMoment(NamedTuple):
    rollout: Rollout
    random: torch.Tensor  # state of the generator
    frame: np.ndarray  # uint8 (3, H, W)


class DreamSimulator:
    """A world model as a `Simulator` (`envs/wrappers.py`): a frame is one dreamt decision.

    Args:
        model: the folder of a world model.
        starts: recorded episodes to begin at.
        frame_stack: K frames that a dream begins with.
        anywhere: begin at any of their decisions; otherwise at their first.
        temperature, top_k: of the draws, 0 is greedy.
        device: where the model lives.
    Raises:
        UserError: the model has no actions or no rewards, or the episodes are not like what it dreams of.
    """

    def __init__(
        self,
        model: Path,
        starts: Path,
        frame_stack: int,
        anywhere: bool,
        temperature: float,
        top_k: int,
        device: str,
    ) -> None:
        self._predictor = load_predictor(model, None, "auto", torch.device(device))
        self.action_dim, self.image_size = self._predictor.action_dim, self._predictor.resolution
        if not self.action_dim or "reward" not in self._predictor.heads:
            raise UserError(f"model={model} predicts without actions or without rewards: there is nothing to act for")
        if frame_stack < self._predictor.context_length:
            raise UserError(
                f"frame_stack={frame_stack}: this model dreams from {self._predictor.context_length} frames"
            )
        self._recordings, self._anywhere, self._frame_stack = Recordings(starts), anywhere, frame_stack
        first = self._recordings.draw(np.random.default_rng(0))
        shape, size = first.frames.shape[2:], self.image_size
        if shape != (size, size) or first.actions.shape[1] != self.action_dim:
            raise UserError(
                f"starts={starts} holds {shape[0]}x{shape[1]} pixels and actions of {first.actions.shape[1]} numbers, "
                f"model={model} dreams of {size}x{size} and {self.action_dim}"
            )
        self._temperature, self._top_k = temperature, top_k
        self._generator = torch.Generator(device)
        self._rollout: Rollout
        self._frame: np.ndarray

    def reset(self, seed: int) -> None:
        """Begins a dream that depends on `seed` alone."""
        drawing = np.random.default_rng(seed)
        self._generator.manual_seed(int(drawing.integers(2**31)))
        frames = self._recordings.draw(drawing).frames
        decision = int(drawing.integers(len(frames) - 1)) if self._anywhere else 0
        # Before the first frame there is only the first.
        self.start = frames[np.maximum(np.arange(decision - self._frame_stack + 1, decision + 1), 0)]  # (K, 3, H, W)
        self._frame = self.start[-1]
        context = to_float(torch.from_numpy(self.start)[None]).to(self._generator.device)
        self._rollout = self._predictor.world.start(
            context, temperature=self._temperature, top_k=self._top_k, generator=self._generator
        )

    @torch.no_grad()
    def advance(self, action: np.ndarray) -> FrameResult:
        """Dreams one decision."""
        step = self._rollout.step(torch.from_numpy(action)[None].to(self._generator.device))
        heads = {name: float(value) for name, value in step.heads.items()}
        self._frame = to_uint8(step.frame[0]).cpu().numpy()
        return FrameResult(heads["reward"], heads.get("success", 0.0) >= 0.5, heads.get("continue", 1.0) < 0.5)

    def render(self) -> np.ndarray:
        """The newest frame: uint8 (3, H, W)."""
        return self._frame

    def snapshot(self) -> DreamMoment:
        """The dream so far, which can go another way."""
        return DreamMoment(self._rollout.fork(), self._generator.get_state(), self._frame)

    def restore(self, snapshot: DreamMoment) -> None:
        """Goes back to a snapshot of this simulator; what is drawn from there on is drawn again."""
        self._rollout, self._frame = snapshot.rollout.fork(), snapshot.frame
        self._generator.set_state(snapshot.random)

    def close(self) -> None:
        """There is nothing to free."""


class DreamEnv(PixelEnv):
    """`Dream-v0`.

    Args:
        model: a run that has left a world model, or the folder of a saved one.
        starts: a run, or a folder of recorded episodes, to begin at; None is the run's own.
        horizon: decisions of an episode; None is the run's `rollout_horizon`, or 10. Errors grow along a dream.
        frame_stack: images of an observation; None is the run's, or 3.
        anywhere: begin at any decision of the recorded episodes, as the dreams of MBPO do; otherwise at their first.
        temperature, top_k: of the draws, 0 is greedy.
        seed: begins the stream of seeds for resets without one.
        device: where the model lives.
        render_mode: only rgb_array.
    Raises:
        UserError, world_model.WeightsError: there is no such model, or no episodes that it can begin at.
    """

    def __init__(
        self,
        model: str | Path,
        starts: str | Path | None = None,
        horizon: int | None = None,
        frame_stack: int | None = None,
        anywhere: bool = True,
        temperature: float = 1.0,
        top_k: int = 100,
        seed: int = 0,
        device: str = "cpu",
        render_mode: str = "rgb_array",
    ) -> None:
        folder = Path(model)
        config = (checkpoints.peek(folder / "checkpoints", "run.json") or {}).get("config", {})
        if starts is None and not config:
            raise UserError(f"model={model} is no run with recorded episodes: name some with starts=<folder>")
        frame_stack = frame_stack or config.get("frame_stack", FRAME_STACK)
        simulator = DreamSimulator(
            folder / "world_model" if config else folder,
            Path(starts or folder),
            frame_stack,
            anywhere,
            temperature,
            top_k,
            device,
        )
        super().__init__(
            simulator,
            seed,
            action_repeat=1,
            frame_stack=frame_stack,
            episode_frames=horizon or config.get("rollout_horizon", HORIZON),
            success_bonus=0.0,
            image_size=simulator.image_size,
        )

    def reset_to(self, simulator_seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """As `PixelEnv.reset_to`, with the frames that were recorded before the first one where there are some."""
        _, info = super().reset_to(simulator_seed)
        self._stack = self.simulator.start.reshape(self._stack.shape)  # type: ignore[attr-defined]
        return self._stack.copy(), info


gymnasium.register("Dream-v0", entry_point=f"{__name__}:DreamEnv")

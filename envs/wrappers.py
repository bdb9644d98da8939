"""From a simulator to a pixel environment: action repeat, stacked frames, time limit, success bonus, seeds, snapshots.

A *frame* is one step of the simulator, a *decision* is `action_repeat` frames under one action. A suite
supplies a `Simulator`; `PixelEnv` gives all of them the same contract, which `tests/test_envs.py` spells
out.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium
import numpy as np

from .errors import EpisodeOver, InvalidAction, InvalidSetting


class FrameResult(NamedTuple):
    """What one frame earned."""

    reward: float
    success: bool
    terminated: bool
    truncated: bool = False  # by a time limit of the simulator's own


class Simulator(Protocol):
    """One task of a suite, frame by frame. All of an episode must follow from the seed of its reset."""

    action_dim: int

    def reset(self, seed: int) -> None:
        """Starts an episode that depends on `seed` alone, not on what this object did before."""

    def advance(self, action: np.ndarray) -> FrameResult:
        """Simulates one frame under `action`, float32 (A,) in [-1, 1]."""

    def render(self) -> np.ndarray:
        """Draws the present state: uint8 (3, H, W), upright."""

    def snapshot(self) -> Any:
        """The present state, of a type of the suite's own; what happens later does not touch it."""

    def restore(self, snapshot: Any) -> None:
        """Goes to a state that this or another simulator of the same task was in.

        The same actions then give the same frames, rewards and successes, bit for bit, whatever this object did before.
        """

    def close(self) -> None:
        """Frees what the simulator holds."""


@runtime_checkable
class Comparable(Protocol):
    """A `Simulator` that can tell whether a goal state is reached. Not every one can."""

    def matches(self, snapshot: Any) -> bool:
        """Whether the present state is that of a snapshot of this task, as near as the task's own tolerance."""


class Snapshot(NamedTuple):
    """A moment between two decisions of a `PixelEnv`."""

    states: tuple[Any, ...]  # the simulator's snapshots: of the present last, before it those that `stack` needs
    stack: np.ndarray | None  # the observation, uint8 (3 * frame_stack, H, W); None: drawn from `states` when restored
    decision: int  # decisions taken in the episode so far


class PixelEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A `Simulator` as a gymnasium environment.

    Observation: uint8 (3 * frame_stack, H, W), oldest frame first; `obs[-3:]` is the newest. Action: float32
    (A,) in [-1, 1], clipped. The reward of a decision is the sum over its frames, plus `success_bonus` if
    any of them touched success; `info["success"]` is 1.0 in that case and 0.0 otherwise. Success does not
    end an episode: after `episode_frames` it is truncated, or earlier where the simulator has a time limit of its own.
    `terminated` is True only where the task itself has an end.

    `reset(seed=s)` makes everything that follows a function of `s` and the actions alone, whatever this
    object did before; `reset()` takes the next seed of a stream begun by the last seed given, at first
    `seed`. From either the simulator's own seed is drawn, `info["seed"]` of the reset: `reset_to` starts exactly that
    episode again, `replay` runs through it without drawing, and `snapshot` and `restore` go back to any decision. All
    of them work across environments of the same task and settings, and none touches the stream of seeds.

    Args:
        simulator: the task.
        seed: begins the stream of reset seeds.
        action_repeat: frames per decision.
        frame_stack: images per observation.
        episode_frames: length of an episode in frames, a multiple of `action_repeat`.
        success_bonus: added to the reward of a decision that touched success.
        image_size: height and width of the images in pixels.

    Raises:
        InvalidSetting: a number is out of range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    render_mode = "rgb_array"
    observation_space: gymnasium.spaces.Box
    action_space: gymnasium.spaces.Box

    def __init__(
        self,
        simulator: Simulator,
        seed: int,
        *,
        action_repeat: int,
        frame_stack: int,
        episode_frames: int,
        success_bonus: float,
        image_size: int,
    ) -> None:
        for name, value in (("action_repeat", action_repeat), ("frame_stack", frame_stack)):
            if value < 1:
                raise InvalidSetting(f"{name} must be at least 1, not {value}")
        if episode_frames < action_repeat or episode_frames % action_repeat:
            raise InvalidSetting(f"episode_frames={episode_frames} must be a multiple of action_repeat={action_repeat}")
        self.simulator = simulator
        self.action_repeat = action_repeat
        self.episode_decisions = episode_frames // action_repeat
        self.success_bonus = success_bonus
        shape = (3 * frame_stack, image_size, image_size)
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (simulator.action_dim,), np.float32)
        self._frame_stack = frame_stack
        self._stack = np.zeros(shape, np.uint8)
        self._decision = self.episode_decisions  # no episode is under way before the first reset
        super().reset(seed=int(seed))  # seeds `np_random`, the stream that reset seeds come from

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode: the first image, repeated to fill the stack, and `{"success": 0.0, "seed": int}`."""
        super().reset(seed=None if seed is None else int(seed))
        return self.reset_to(int(self.np_random.integers(2**31)))

    def reset_to(self, simulator_seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts the episode whose reset gave `simulator_seed` as `info["seed"]`; returns what that reset did."""
        self.simulator.reset(simulator_seed)
        self._decision = 0
        self._stack = np.tile(self.simulator.render(), (self._frame_stack, 1, 1))  # (3 * frame_stack, H, W)
        return self._stack.copy(), {"success": 0.0, "seed": simulator_seed}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes one decision.

        Raises:
            InvalidAction: wrong shape, NaN or infinity.
            EpisodeOver: the episode has ended, or none has begun.
        """
        reward, success, terminated, truncated = self._decide(action)
        self._stack = np.concatenate([self._stack[3:], self.simulator.render()])  # (3 * frame_stack, H, W)
        return self._stack.copy(), reward, terminated, truncated, {"success": float(success)}

    def step_unseen(self, action: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """As `step` without the observation, which is not drawn.

        Drawn frames that come later do not know of it: `restore` the snapshot of this moment, its `stack` set to None,
        to see it.
        """
        reward, success, terminated, truncated = self._decide(action)
        return reward, terminated, truncated, {"success": float(success)}

    def snapshot(self) -> Snapshot:
        """The present moment of the episode."""
        return Snapshot((self.simulator.snapshot(),), self._stack, self._decision)

    def restore(self, snapshot: Snapshot) -> np.ndarray:
        """Goes to a moment of an episode, of this or of another environment of the same task and settings.

        Returns:
            The observation of that moment. `snapshot._replace(stack=observation)` saves drawing one that is known.
        """
        if snapshot.stack is None:
            self._stack = np.concatenate([self._drawn(state) for state in snapshot.states])
        else:
            self.simulator.restore(snapshot.states[-1])
            self._stack = snapshot.stack
        self._decision = snapshot.decision
        return self._stack.copy()

    def replay(self, simulator_seed: int, actions: Iterable[np.ndarray]) -> list[Snapshot]:
        """Plays a recorded episode again without drawing it.

        No episode is under way afterwards: `restore` one of the snapshots.

        Args:
            simulator_seed: `info["seed"]` of the episode's reset.
            actions: its T actions, or the first of them.

        Returns:
            T + 1 snapshots: of the start, and after each action.

        Raises:
            InvalidAction: as `step`.
            EpisodeOver: there are more actions than the episode has decisions.
        """
        self.simulator.reset(simulator_seed)
        self._decision = 0
        states = [self.simulator.snapshot()] * self._frame_stack
        snapshots = [Snapshot(tuple(states), None, 0)]
        for action in actions:
            self._decide(action)
            states = [*states[1:], self.simulator.snapshot()]
            snapshots.append(Snapshot(tuple(states), None, self._decision))
        self._decision = self.episode_decisions
        return snapshots

    def render(self) -> np.ndarray:
        """The newest frame as uint8 (H, W, 3), the way gymnasium's video tools want it."""
        return self._stack[-3:].transpose(1, 2, 0).copy()

    def close(self) -> None:
        """Frees the simulator and its OpenGL context. Closing twice is allowed."""
        self.simulator.close()

    @property
    def decisions_left(self) -> int:
        """Decisions until the end of the episode; 0 when none is under way."""
        return self.episode_decisions - self._decision

    def _decide(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        """A decision without its image: (reward, success, terminated, truncated)."""
        action = self._checked(action)
        if not self.decisions_left:
            raise EpisodeOver("no episode is under way: call reset() before step()")
        reward, success, terminated, truncated = 0.0, False, False, False
        for _ in range(self.action_repeat):
            frame = self.simulator.advance(action)
            reward += frame.reward
            success |= frame.success
            terminated, truncated = frame.terminated, frame.truncated
            if terminated or truncated:
                break
        if success:
            reward += self.success_bonus
        self._decision = self.episode_decisions if terminated or truncated else self._decision + 1
        truncated = self._decision == self.episode_decisions and not terminated
        return float(reward), success, terminated, truncated

    def _drawn(self, state: Any) -> np.ndarray:
        self.simulator.restore(state)
        return self.simulator.render()

    def _checked(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape:
            raise InvalidAction(f"an action has the shape {self.action_space.shape}, not {action.shape}")
        if not np.isfinite(action).all():
            raise InvalidAction(f"an action must be finite, not {action.tolist()}")
        return np.clip(action, -1.0, 1.0)

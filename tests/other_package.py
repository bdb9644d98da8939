"""A package of environments that knows nothing of this project: each registers as gymnasium's users do."""

from typing import Any

import gymnasium
import numpy as np

START = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)


class Dot(gymnasium.Env):
    """A dot on a line is pushed to its end, at 10; it falls off at -2."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    action_space = gymnasium.spaces.Box(np.array([-3.0]), np.array([1.0]), dtype=np.float64)
    observation_space: gymnasium.Space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    place = 0.0

    def __init__(self, render_mode: str | None = None, camera_name: str = "front") -> None:
        self.render_mode, self.camera_name = render_mode, camera_name

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(0, 4))
        return self.observed(), {"is_success": False}

    def step(self, action: np.ndarray) -> Any:
        self.place = min(self.place + float(action[0]), 10.0)
        return self.observed(), self.place / 10, self.place < -2, False, {"is_success": self.place >= 10}

    def observed(self) -> Any:
        return np.array([self.place], np.float32)

    def render(self) -> Any:
        image = np.full((48, 96, 3), 40 if self.camera_name == "front" else 90, np.uint8)
        column = int(np.clip(8 * self.place, 0, 88))
        image[20:28, column : column + 8] = (250, 60, 20)
        return image


class Pixels(Dot):
    """Its image is a part of the observation, channels first; it cannot draw, and it has success under another name."""

    observation_space = gymnasium.spaces.Dict(
        {
            "pixels": gymnasium.spaces.Box(0, 255, (3, 48, 96), np.uint8),
            "place": gymnasium.spaces.Box(-np.inf, np.inf, (1,)),
        }
    )

    def __init__(self) -> None:
        super().__init__()

    def observed(self) -> Any:
        return {"pixels": super().render().transpose(2, 0, 1), "place": super().observed()}

    def step(self, action: np.ndarray) -> Any:
        *outcome, info = super().step(action)
        return (*outcome, {"arrived": info["is_success"]})


class Blind(Dot):
    def render(self) -> None:
        return None


class Discrete(Dot):
    action_space = gymnasium.spaces.Discrete(3)  # type: ignore[assignment]


class Whole(Dot):
    action_space = gymnasium.spaces.Box(0, 4, (1,), np.int64)


class Boundless(Dot):
    action_space = gymnasium.spaces.Box(-np.inf, 1.0, (1,))


class Unseeded(Dot):
    """Draws its start from a generator that no reset seeds."""

    drawn = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = float(self.drawn.uniform(0, 4))
        return self.observed(), {}


class Drifting(Dot):
    """Carries something from one episode into the next that shows in its rewards alone, whoever plays them."""

    drift = [0.0]

    def step(self, action: np.ndarray) -> Any:
        self.drift[0] += 0.1
        observed, reward, *rest = super().step(action)
        return (observed, reward + self.drift[0], *rest)


class Marking(Dot):
    """Draws the last action, after a reset that of the episode before (gym_pusht 0.1.8 does)."""

    action = 0.0

    def step(self, action: np.ndarray) -> Any:
        self.action = float(action[0])
        return super().step(action)

    def render(self) -> Any:
        image = super().render()
        image[:8] = int(100 + 30 * self.action)
        return image


class Short(Dot):
    """Has a time limit of its own, which gymnasium knows nothing of."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        observed, reward, terminated, _, info = super().step(np.zeros(1))
        return observed, reward, terminated, self.steps == 5, info


class Needy(Dot):
    def __init__(self, **keywords: Any) -> None:
        raise gymnasium.error.DependencyNotInstalled("pybox2d is missing, run `pip install box2d`\nmore of it")


for kind in (Dot, Pixels, Blind, Discrete, Whole, Boundless, Unseeded, Drifting, Marking, Short, Needy):
    gymnasium.register(f"other/{kind.__name__}-v0", entry_point=kind, max_episode_steps=21)
gymnasium.register("Endless-v0", entry_point=Dot)

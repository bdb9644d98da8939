"""Meta-world 3.1.1 as it is shipped, seen as the official wrapper sees it: python -m benchmarks.workers.shipped.

The official wrapper itself needs a Meta-world that no longer installs. It takes two steps under one action, draws the
corner camera at the observation's size in the simulator's own quality, turns the image upright and stacks three.
"""

from collections import deque
from typing import Any

import numpy as np
from gymnasium.utils import seeding

from benchmarks.workers.ours import Decisions, read
from benchmarks.workers.pipe import serve
from envs.rendering import choose_backend
from mbrl.experiment.settings import load


class Shipped(Decisions):
    def __init__(self, spec: dict[str, Any]) -> None:
        self.settings = s = load(spec["overrides"])
        choose_backend()
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        self.env: Any = ALL_V3_ENVIRONMENTS[f"{s.task}-v3"](
            render_mode="rgb_array",
            camera_name=s.camera,
            width=s.image_size,
            height=s.image_size,
            reward_function_version="v2",
        )
        self.env._partially_observable = False
        del self.env.sawyer_observation_space
        self.env._set_task_called = True
        self.env._freeze_rand_vec = False
        self.env.seeded_rand_vec = True
        self.env.max_path_length = 2**31  # the official wrapper counts decisions itself
        self.quality, self.actions, self.step = spec["quality"], read(spec, "actions")["actions"].numpy(), 0
        self.frames: deque[np.ndarray] = deque(maxlen=s.frame_stack)
        self.env.seed(int(seeding.np_random(0)[0].integers(2**31)))  # as `PixelEnv` draws it
        self.reset()

    def reset(self) -> None:
        self.env.reset()
        self.env.step(np.zeros(4, np.float32))
        for _ in range(self.settings.frame_stack):
            self.frames.append(self.image())
        self.left = 200 // self.settings.action_repeat

    def image(self) -> np.ndarray:
        return self.env.render()[::-1].transpose(2, 0, 1).copy()

    def run(self) -> tuple[np.ndarray, float]:
        if not self.left:
            self.reset()
        action = self.actions[self.step % len(self.actions)]
        earned, success = 0.0, False
        for _ in range(self.settings.action_repeat):
            _, reward, _, _, info = self.env.step(action)
            earned += reward
            success |= bool(info["success"])
        self.frames.append(self.image())
        self.step += 1
        self.left -= 1
        return np.concatenate(self.frames), earned + self.settings.success_bonus * success


if __name__ == "__main__":
    serve({"environment": Shipped})

"""Any gymnasium environment by its id: `gym:<package>:<Id>`, such as gym:gym_pusht:gym_pusht/PushT-v0.

The package is imported and registers the id. Actions must be a bounded Box, which is scaled to [-1, 1]. Images are what
`render()` draws or, with `image_key`, a part of a Dict observation; the rest of an observation is not looked at. What
does not fit is said in one line when the environment is made, and a short episode is played twice to see that its seed
decides everything: runs continue bit for bit, and snapshots are seeds with the actions since. An environment that
carries something from one episode into the next is made anew for each.
"""

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from .errors import InvalidSetting, MissingGL, MissingPackage, UnknownTask
from .rendering import choose_backend
from .wrappers import FrameResult

SUCCESS_KEYS = ("success", "is_success")  # of info, where `success_key` names none
CHECKED_FRAMES = 10  # played twice


class Moment(NamedTuple):
    """A state of an environment that a seed and actions decide."""

    seed: int
    actions: tuple[np.ndarray, ...]  # of the frames so far, in [-1, 1]


class Gym:
    """A gymnasium environment as a `Simulator`.

    Args:
        task: `<package>:<Id>`.
        camera: "" is the environment's own; another is handed to it as `camera_name`, a number as `camera_id`.
        image_size: height and width of the images in pixels; larger ones are averaged, not square ones squeezed.
        render_quality: has no meaning here.
        success_key: of `info`, true where a frame touched success; None takes `success` or `is_success`, if there.
        image_key: of a Dict observation, an image to take in place of `render()`.

    Raises:
        UnknownTask, MissingPackage, ModuleNotFoundError: there is no such environment, or it cannot be imported.
        InvalidSetting: it does not fit.
    """

    def __init__(
        self,
        task: str,
        *,
        camera: str | int,
        image_size: int,
        render_quality: str,
        success_key: str | None = None,
        image_key: str | None = None,
    ) -> None:
        self._name, self._task, self._camera = f"gym:{task}", task, camera
        self._size, self._image_key = image_size, image_key
        self._success_keys = SUCCESS_KEYS if success_key is None else (success_key,)
        self._env, self._anew = self._made(), False  # whether each episode has an environment of its own
        self._moment = Moment(0, ())
        self._observation: Any = None
        self._info_keys: set[str] = set()
        try:
            self._low, self._high = self._bounds()
            self.action_dim = self._low.size
            self._check_image_key()
            self._check_seeds()
            if success_key is not None and success_key not in self._info_keys:
                raise self._misfit(f"has no success_key={success_key} in its info", self._info_keys)
        except BaseException:
            self.close()
            raise

    @property
    def episode_frames(self) -> int:
        """Length of an episode, as the environment was registered."""
        made = self._env.spec  # without the time limit
        limit = gymnasium.spec(made.id).max_episode_steps if made else None
        if limit is None:
            raise self._misfit("has no time limit of its own: set episode_frames")
        return limit

    def reset(self, seed: int) -> None:
        """Starts the episode of `seed`."""
        if self._anew:
            self._env.close()
            self._env = self._made()
        self._observation, info = self._env.reset(seed=seed)
        self._moment = Moment(seed, ())
        self._info_keys |= info.keys()

    def advance(self, action: np.ndarray) -> FrameResult:
        """Takes one step of the environment."""
        scaled = self._low + (action.astype(np.float64) + 1.0) / 2.0 * (self._high - self._low)
        space = self._env.action_space
        taken = np.clip(scaled, self._low, self._high).reshape(space.shape or ()).astype(space.dtype)
        self._observation, reward, terminated, truncated, info = self._env.step(taken)
        self._moment = self._moment._replace(actions=(*self._moment.actions, action.copy()))
        self._info_keys |= info.keys()
        success = any(bool(np.any(info.get(key, False))) for key in self._success_keys)
        return FrameResult(float(reward), success, bool(terminated), bool(truncated))

    def render(self) -> np.ndarray:
        """Draws the present state, or takes its image from the observation: uint8 (3, H, W)."""
        image = self._env.render() if self._image_key is None else self._observation[self._image_key]
        if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[0] == 3 != image.shape[2]:
            image = image.transpose(1, 2, 0)
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            what = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else str(type(image).__name__)
            source = "render()" if self._image_key is None else f"image_key={self._image_key}"
            raise self._misfit(f"gives no uint8 image (H, W, 3) by {source}, but {what}", self._image_keys())
        return resized(image, self._size)

    def snapshot(self) -> Moment:
        """The seed and the actions so far."""
        return self._moment

    def restore(self, snapshot: Moment) -> None:
        """Goes to a snapshot by playing what lies between."""
        now, then = self._moment, snapshot
        behind = len(now.actions)
        ahead = now.seed == then.seed and all(a is b for a, b in zip(now.actions, then.actions, strict=False))
        if not ahead or behind > len(then.actions):
            self.reset(then.seed)
            behind = 0
        for action in then.actions[behind:]:
            self.advance(action)
        self._moment = then

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def _made(self) -> gymnasium.Env:
        keywords: dict[str, Any] = {"render_mode": "rgb_array"} if self._image_key is None else {}
        if camera := str(self._camera):
            keywords |= {"camera_id": int(camera)} if camera.isdigit() else {"camera_name": camera}
        with contextlib.suppress(MissingGL):  # it may draw without MuJoCo
            choose_backend()
        try:
            # No time limit: the length of an episode is the wrapper's business.
            return gymnasium.make(self._task, max_episode_steps=-1, disable_env_checker=True, **keywords)
        except gymnasium.error.DependencyNotInstalled as error:
            raise MissingPackage(f"{self._name} needs a package that is not installed: {_line(error)}") from error
        except ModuleNotFoundError as error:
            reason = error.__cause__ or error.__context__ or error
            raise ModuleNotFoundError(_line(reason)) from error  # `envs.make` says what to install
        except gymnasium.error.Error as error:
            raise UnknownTask(f"unknown task {self._name!r}: {_line(error)}") from error
        except (TypeError, ValueError, AssertionError) as error:
            given = ", ".join(f"{key}={value}" for key, value in keywords.items())
            raise self._misfit(f"cannot be made with {given or 'its defaults'} ({_line(error)})") from error

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the actions, (A,) each."""
        space = self._env.action_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise self._misfit(f"takes actions of {space}: they must be a Box")
        if not np.issubdtype(space.dtype, np.floating):
            raise self._misfit(f"takes actions of {space}: they must be real numbers")
        if not space.is_bounded():
            raise self._misfit(f"takes actions of {space}: they must have bounds, to be scaled to [-1, 1]")
        return space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()

    def _check_image_key(self) -> None:
        space = self._env.observation_space
        key = self._image_key
        if key is not None and (not isinstance(space, gymnasium.spaces.Dict) or key not in space.spaces):
            raise self._misfit(f"has no image_key={key} in its observation", self._image_keys())

    def _image_keys(self) -> list[str]:
        """Parts of the observation that are images."""
        space = self._env.observation_space
        parts: Mapping[str, Any] = space.spaces if isinstance(space, gymnasium.spaces.Dict) else {}
        return [str(key) for key, part in parts.items() if len(part.shape or ()) == 3 and part.dtype == np.uint8]

    def _check_seeds(self) -> None:
        """Raises InvalidSetting unless a seed decides what follows, whatever happened before."""
        if self._difference() is None:
            return
        self._anew = True
        if difference := self._difference():
            raise self._misfit(
                f"gives another {difference} when it is reset with the same seed again: no run with it could be "
                "repeated or continued; its reset(seed=...) must decide everything random"
            )
        warnings.warn(
            f"{self._name} carries something from one episode into the next, so it is made anew for each", stacklevel=2
        )

    def _difference(self) -> str | None:
        """What differs between two episodes of one seed, None if nothing does."""
        actions = np.random.default_rng(0).uniform(-1, 1, (CHECKED_FRAMES, self.action_dim)).astype(np.float32)
        frames = zip(self._played(actions), self._played(actions), strict=False)
        for frame, ((result, image), (other_result, other_image)) in enumerate(frames):
            when = f"after {frame} frames" if frame else "at once"
            if result != other_result:
                return f"reward or end {when}"
            if not np.array_equal(image, other_image):
                return f"image {when}"
        return None

    def _played(self, actions: np.ndarray) -> list[tuple[FrameResult | None, np.ndarray]]:
        """An episode's frames: what each earned, and its image."""
        self.reset(1)
        frames: list[tuple[FrameResult | None, np.ndarray]] = [(None, self.render())]
        for action in actions:
            result = self.advance(action)
            frames.append((result, self.render()))
            if result.terminated or result.truncated:
                break
        return frames

    def _misfit(self, what: str, there: Any = None) -> InvalidSetting:
        known = "" if there is None else f"; there is {', '.join(sorted(there)) or 'none'}"
        return InvalidSetting(f"{self._name} {what}{known}")


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """An image (H, W, 3) as (3, size, size), each pixel the mean of what it covers. uint8."""
    from PIL import Image

    if image.shape[:2] != (size, size):
        image = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((size, size), Image.Resampling.BOX))
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _line(error: BaseException) -> str:
    """The first line of an error, or its type where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

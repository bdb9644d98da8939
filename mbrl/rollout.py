"""Between reality and dream: the only place where images change between uint8 and float, and where dreams are made.

Environments, replay and agents speak uint8; the world model speaks float in [0, 1]. An imagined frame is rounded to
uint8 before the agent or a buffer sees it, so a real and an imagined copy of one image are the same numbers.

Letters: B batch, K frame stack, t frames imagined so far, H horizon, C H W one frame, A action.
"""

import numpy as np
import torch
from torch import Tensor

from agents import Agent
from mbrl.replay import ReplayBuffer, Starts
from world_model import Clips, Episode, WorldModel, imagine
from world_model.api import StartOptions


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]."""
    return images.float() / 255


def to_uint8(images: Tensor) -> Tensor:
    """Float in [0, 1] -> the nearest uint8; the inverse of `to_float`."""
    return (images.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def to_clips(segments: Clips, device: torch.device) -> Clips:
    """Segments of a replay buffer as the world model wants them."""
    moved = segments.map(lambda field: field.to(device, non_blocking=True))
    return moved._replace(frames=to_float(moved.frames))


class RealClips:
    """A replay buffer as a `world_model.api.ClipSampler`."""

    def __init__(self, replay: ReplayBuffer, device: torch.device) -> None:
        self._replay, self._device = replay, device

    def clips(self, batch_size: int, length: int) -> Clips:
        """Windows of `length` frames, uniform over all that the buffer holds."""
        return to_clips(self._replay.sample_segments(batch_size, length), self._device)


def dream(
    world: WorldModel,
    agent: Agent,
    starts: Starts,
    horizon: int,
    decision: int,
    *,
    temperature: float,
    top_k: int,
    generator: torch.Generator,
) -> list[Episode]:
    """Let the agent act in the world model for `horizon` decisions, exploring as it does at `decision`.

    An agent with a memory must be a copy: the dream is an episode of its own, and a real one may be under way.

    Args:
        starts: B real moments, see `ReplayBuffer.sample_starts`.
    Returns:
        B episodes of `horizon` decisions, fewer where the world model says that the task has ended. Their first K
        frames are real, K-1 of them prefix.
    """
    stack = starts.frames.shape[1]

    def policy(frames: Tensor) -> Tensor:
        """The stack of the newest K of the frames so far, (B, K+t, C, H, W), decides."""
        return agent.act(to_uint8(frames[:, -stack:]).flatten(1, 2), decision, eval_mode=False)

    agent.begin_episode(eval_mode=False)
    context = to_float(starts.frames.to(world.device))
    options = StartOptions(temperature=temperature, top_k=top_k, generator=generator, origins=starts.origins)
    imagined = imagine(world, context, policy, horizon, **options)
    assert imagined.rewards is not None, "make_world takes no model without a reward head"
    frames = torch.cat([starts.frames, to_uint8(imagined.frames).cpu()], dim=1).numpy()  # (B, K + H, C, H, W)
    actions, rewards = imagined.actions.float().cpu().numpy(), imagined.rewards.float().cpu().numpy()
    lengths, ended = np.full(len(frames), horizon), np.zeros(len(frames), bool)
    if (continues := imagined.heads.get("continue")) is not None:
        over = (continues < 0.5).cpu().numpy()  # (B, H)
        ended = np.asarray(over.any(1))
        lengths = np.where(ended, over.argmax(1) + 1, horizon)
    return [
        Episode(frames[i, : stack + n], actions[i, :n], rewards[i, :n], bool(ended[i]), prefix=stack - 1)
        for i, n in enumerate(lengths)
    ]

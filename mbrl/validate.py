"""Is the dream worth something? The world model against episodes that it never trained on.

Those are the episodes of the evaluation just played: they come from environments of their own and enter no buffer.
Clips are dreamt under the actions that were really taken and compared with what really happened.

Letters: B clips, K context frames, H horizon, C height width of a frame, A action.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents import DreamerV3
from mbrl.experiment.video import dream_grid
from mbrl.replay import Episode
from mbrl.rollout import to_float, to_uint8
from world_model import Clips, Dream, Origin, WorldModel, imagine
from world_model.data import goal_first
from world_model.metrics import correlation, moving_errors, psnr

CLIPS = 32  # clips that the numbers are means over
SHOWN = 3  # clips in the video
SEEN = 5  # frames that a model with a memory sees before it dreams


class Windows(NamedTuple):
    """Windows of held-out episodes."""

    frames: Tensor  # uint8 (B, T, C, H, W)
    actions: Tensor  # float32 (B, T - 1, A)
    rewards: Tensor  # float32 (B, T - 1)
    origins: list[Origin]  # of their first frames; none where a seed is not known


def cut_clips(episodes: Sequence[Episode], count: int, length: int, seed: int) -> Windows:
    """`count` windows of `length` frames; none if no episode is long enough."""
    fitting = [episode for episode in episodes if len(episode.frames) >= length]
    if not fitting:
        return Windows(torch.empty(0), torch.empty(0), torch.empty(0), [])
    generator = np.random.default_rng(seed)
    frames, actions, rewards, origins = [], [], [], list[Origin]()
    for i in range(count):
        episode = fitting[i % len(fitting)]
        start = int(generator.integers(len(episode.frames) - length + 1))
        frames.append(episode.frames[start : start + length])
        actions.append(episode.actions[start : start + length - 1])
        rewards.append(episode.rewards[start : start + length - 1])
        if episode.seed is not None:
            origins.append(Origin(episode.seed, episode.actions, start))
    frames_, actions_, rewards_ = (torch.from_numpy(np.stack(parts)) for parts in (frames, actions, rewards))
    return Windows(frames_, actions_, rewards_, origins if len(origins) == count else [])


@torch.no_grad()
def validate(
    world: WorldModel,
    episodes: Sequence[Episode],
    horizon: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int = 100,
    goal: bool = False,
) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
    """Metrics of `horizon`-frame dreams and a video real | imagined | error, uint8 (horizon, 3, height, width).

    Nothing of it touches training: the model is in evaluation mode and the draws come from `seed`. `shuffled` dreams
    are under the actions of the next clip, which is of another episode where there are several. With `goal` a clip's
    last frame comes first.
    Without an episode long enough there are no metrics and no video.
    """
    known = world.context_length
    frames, actions, rewards, firsts = cut_clips(episodes, CLIPS, known + horizon, seed)
    if not len(frames):
        return {}, None
    origins = [origin._replace(decision=origin.decision + known - 1) for origin in firsts] or None
    if goal:
        frames, actions, rewards = goal_first(frames, actions, rewards)
    clips = Clips(to_float(frames.to(world.device)), *(pad(field.to(world.device)) for field in (actions, rewards)))
    context, true = clips.frames[:, :known], clips.frames[:, known:]
    # actions[:, i] leads to frame i + 1: the first known - 1 lie inside the context.
    actions, rewards = (field[:, known - 1 :].to(world.device) for field in (actions, rewards))
    generator = torch.Generator(world.device)

    def dream_under(actions: Tensor) -> Dream:
        return imagine(world, context, actions, horizon, temperature, top_k, generator.manual_seed(seed), origins)

    dream, shuffled = dream_under(actions), dream_under(actions.roll(1, 0))
    metrics = compare(true, context[:, -1], rewards, dream.frames, dream.rewards, shuffled.frames)
    metrics |= world.diagnose(clips, dream)
    return metrics, show(frames[:, known:], rewards, dream.frames, dream.rewards)


def validate_dreamer(
    agent: DreamerV3, episodes: Sequence[Episode], seed: int
) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
    """The same of DreamerV3's world model, for dreams as long as those that it learns to act in.

    It sees `SEEN` frames of a clip first. Tokens it has none.
    """
    frames, actions, rewards, _ = cut_clips(episodes, CLIPS, SEEN + agent.config.imagination_length, seed)
    if not len(frames):
        return {}, None
    frames, actions, rewards = (field.to(agent.device) for field in (frames, actions, rewards[:, SEEN - 1 :]))
    clips = to_float(frames)
    imagined, predicted = agent.dream(frames[:, :SEEN], actions, seed)
    shuffled, _ = agent.dream(frames[:, :SEEN], actions.roll(1, 0), seed)
    reconstruction = agent.reconstruct(frames, actions, seed)[:, SEEN:]
    true, last = clips[:, SEEN:], clips[:, SEEN - 1]
    metrics = compare(true, last, rewards, imagined, predicted, shuffled)
    metrics["reconstruction_error_ratio"] = moving_errors(reconstruction.float(), true, last).ratio
    return metrics, show(frames[:, SEEN:], rewards, imagined, predicted)


def pad(field: Tensor) -> Tensor:
    """(B, T - 1, ...) -> (B, T, ...): zeros for the step that leads out of a clip."""
    return torch.cat([field, field.new_zeros(field[:, :1].shape)], dim=1)


def compare(
    true: Tensor,
    last: Tensor,
    rewards: Tensor,
    dream: Tensor,
    predicted: Tensor | None,
    shuffled: Tensor,
) -> dict[str, float]:
    """What every world model is judged by.

    Frames (B, H, 3, height, width): the true ones after the context's `last`, those of the dream and of the dream under
    shuffled actions. True rewards and, of a model with a reward head, predicted ones (B, H).
    """
    errors = moving_errors(dream.float(), true, last)
    metrics = {
        "dream_mse": float((dream - true).square().mean()),
        "dream_psnr": float(psnr(dream.float(), true).mean()),
        "copy_psnr": float(psnr(last[:, None].expand_as(true), true).mean()),
        "moving_error_ratio": errors.ratio,
        "moving_error_ratio_shuffled": moving_errors(shuffled.float(), true, last).ratio,
    }
    if predicted is not None:
        metrics["reward_mae"] = float((predicted - rewards).abs().mean())
        metrics["reward_correlation"] = correlation(predicted, rewards)
    return metrics


def show(frames: Tensor, rewards: Tensor, dream: Tensor, predicted: Tensor | None) -> NDArray[np.uint8]:
    """The first clips real | imagined | error, for true frames uint8 (B, H, 3, height, width)."""
    predicted = torch.zeros_like(rewards) if predicted is None else predicted
    return dream_grid(
        frames[:SHOWN].cpu().numpy(),
        to_uint8(dream[:SHOWN]).cpu().numpy(),
        rewards[:SHOWN].float().cpu().numpy(),
        predicted[:SHOWN].float().cpu().numpy(),
    )

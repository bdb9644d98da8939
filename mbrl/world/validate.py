"""Is the dream worth something? The world model against episodes that it never trained on.

Those are the episodes of the evaluation just played: they come from environments of their own and enter no buffer.
Clips are dreamt under the actions that were really taken and compared with what really happened.

Letters: B clips, K context frames, H horizon, C height width of a frame, A action.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents import DreamerV3
from mbrl.experiment.video import dream_grid
from mbrl.rollout import to_clips, to_float, to_uint8
from world_model import Clips, Dream, Episode, Origin, WorldModel, imagine
from world_model.api import StartOptions
from world_model.data import goal_first
from world_model.metrics import correlation, moving_errors, psnr

CLIPS = 32  # clips that the numbers are means over
SHOWN = 3  # clips in the video
SEEN = 5  # frames that a model with a memory sees before it dreams


def cut_clips(
    episodes: Sequence[Episode], count: int, length: int, seed: int, known: int = 1
) -> tuple[Clips, list[Origin] | None] | None:
    """`count` windows of `length` frames with uint8 frames, and where all are known the origins of the last frame of
    their context, which is `known` frames long.

    None if no episode is long enough.
    """
    fitting = [episode for episode in episodes if len(episode.frames) >= length]
    if not fitting:
        return None
    generator = np.random.default_rng(seed)
    frames, actions, rewards, origins = [], [], [], list[Origin]()
    for i in range(count):
        episode = fitting[i % len(fitting)]
        start = int(generator.integers(len(episode.frames) - length + 1))
        frames.append(episode.frames[start : start + length])
        actions.append(np.pad(episode.actions[start : start + length - 1], ((0, 1), (0, 0))))
        rewards.append(np.pad(episode.rewards[start : start + length - 1], (0, 1)))
        if episode.seed is not None:
            origins.append(Origin(episode.seed, episode.actions, start + known - 1))
    clips = Clips(*(torch.from_numpy(np.stack(field)) for field in (frames, actions, rewards)))
    return clips, origins if len(origins) == count else None


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
    cut = cut_clips(episodes, CLIPS, known + horizon, seed, known)
    if cut is None:
        return {}, None
    segments, origins = cut
    if goal:
        segments = segments.map(lambda field: goal_first(field)[0])
    clips = to_clips(segments, world.device)
    context, true = clips.frames[:, :known], clips.frames[:, known:]
    # actions[:, i] leads to frame i + 1: the first known - 1 lie inside the context.
    actions, rewards = clips.actions[:, known - 1 : -1], clips.rewards[:, known - 1 : -1]
    generator = torch.Generator(world.device)

    def dream_under(actions: Tensor) -> Dream:
        draws = generator.manual_seed(seed)
        options = StartOptions(temperature=temperature, top_k=top_k, generator=draws, origins=origins)
        return imagine(world, context, actions, horizon, **options)

    dream, shuffled = dream_under(actions), dream_under(actions.roll(1, 0))
    metrics = compare(true, context[:, -1], rewards, dream.frames, dream.rewards, shuffled.frames)
    metrics |= world.diagnose(clips, dream)
    return metrics, show(segments.frames[:, known:], rewards, dream.frames, dream.rewards)


def validate_dreamer(
    agent: DreamerV3, episodes: Sequence[Episode], seed: int
) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
    """The same of DreamerV3's world model, for dreams as long as those that it learns to act in.

    It sees `SEEN` frames of a clip first. Tokens it has none.
    """
    cut = cut_clips(episodes, CLIPS, SEEN + agent.config.imagination_length, seed)
    if cut is None:
        return {}, None
    segments = cut[0].map(lambda field: field.to(agent.device))
    frames, actions, rewards = segments.frames, segments.actions[:, :-1], segments.rewards[:, SEEN - 1 : -1]
    clips = to_float(frames)
    imagined, predicted = agent.dream(frames[:, :SEEN], actions, seed)
    shuffled, _ = agent.dream(frames[:, :SEEN], actions.roll(1, 0), seed)
    reconstruction = agent.reconstruct(frames, actions, seed)[:, SEEN:]
    true, last = clips[:, SEEN:], clips[:, SEEN - 1]
    metrics = compare(true, last, rewards, imagined, predicted, shuffled)
    metrics["reconstruction_error_ratio"] = moving_errors(reconstruction.float(), true, last).ratio
    return metrics, show(frames[:, SEEN:], rewards, imagined, predicted)


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

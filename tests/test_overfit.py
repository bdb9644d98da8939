"""Each kind of model learns four clips by heart and gives them back from what it is given; tiny channels, seconds.

The goal-conditioned kind is in test_predict.py, where only the goal tells what happens.
"""

import dataclasses

import pytest
import torch
from tiny_world import LEARNER, TRANSFORMER

from mbrl.models import sizes
from world_model import IVideoGPT, TokenizerConfig
from world_model.learner import Clips, WorldModelLearner
from world_model.metrics import psnr

TINY = dict(
    layers_per_block=1, latent_channels=8, norm_num_groups=4, num_vq_embeddings=64, num_dyn_embeddings=64,
    cross_attention_dropout=0.0, residual=True,
)  # fmt: skip
GROUND, BRIGHTER = 0.3, 0.2


def lights(side: int, frames: int, dark: int) -> Clips:
    """Four clips of a dark picture: from frame `dark` on one of its quarters, another in each, is brighter every frame.

    An action says which, one number a quarter.
    """
    clips = torch.full((4, frames, 3, side, side), GROUND)
    half = side // 2
    for which, clip in enumerate(clips):
        y, x = half * (which // 2), half * (which % 2)
        for t in range(dark, frames):
            clip[t, :, y : y + half, x : x + half] += BRIGHTER * (t - dark + 1)
    return Clips(clips, torch.eye(4)[:, None].expand(-1, frames, -1), torch.zeros(4, frames))


def by_heart(tokenizer: TokenizerConfig, clips: Clips, action_dim: int, updates: tuple[int, int]) -> IVideoGPT:
    """A model that saw nothing but these clips, for so many updates of the tokenizer and of the transformer."""
    torch.manual_seed(0)
    model = IVideoGPT(tokenizer, dataclasses.replace(TRANSFORMER, attention_dropout=0.0), action_dim, reward_head=False)
    config = dataclasses.replace(
        LEARNER,
        segment_length=clips.frames.shape[1],
        tokenizer_lr=5e-3,
        transformer_lr=3e-3,
        warmup_updates=10,
        decay_updates=max(updates),
        sampled_future_frames=3,
        quantize_after=updates[0] // 2,
        revive_codes_until=updates[0] // 4,
        mse_weight=5.0,
    )
    learner = WorldModelLearner(model, config, seed=0)
    for _ in range(updates[0]):
        learner.update(frames=clips.frames)
    for _ in range(updates[1]):
        learner.update(clips=clips)
    return model


@pytest.mark.parametrize(
    ("name", "changes", "action_dim", "frames", "updates"),
    [
        # Equal context frames: the actions alone tell the four apart.
        pytest.param("64", dict(block_out_channels=(8, 8, 16)), 4, 4, (60, 40), id="64x64"),
        # The second frame shows which quarter it will be.
        pytest.param("64", dict(block_out_channels=(8, 16, 32), resolution=32), 0, 4, (60, 40), id="action-free"),
        pytest.param("256", dict(block_out_channels=(4, 4, 8, 8, 16)), 4, 3, (30, 40), id="256x256"),
    ],
)
def test_four_clips_come_back(name, changes, action_dim, frames, updates):
    config = dataclasses.replace(sizes(TokenizerConfig, name, "paper"), **TINY | changes)
    known = config.context_length
    clips = lights(config.resolution, frames, dark=known if action_dim else known - 1)
    model = by_heart(config, clips, action_dim, updates)
    context, future = clips.frames[:, :known], clips.frames[:, known:]
    dream = model.imagine(context, clips.actions[:, known - 1 : -1], frames - known, temperature=0)
    assert psnr(dream.frames, future).min() > 30
    assert psnr(context[:, -1:].expand_as(future), future).max() < 21  # copying is no way to get there

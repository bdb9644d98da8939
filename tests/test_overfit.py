"""Each kind of model learns four clips by heart and gives them back from what it is given; tiny channels, seconds."""

import dataclasses

import pytest
import torch
from tiny_world import LEARNER, TRANSFORMER

from mbrl.pretrain.models import sizes
from world_model import IVideoGPT, TokenizerConfig
from world_model.api import Clips
from world_model.data import goal_first
from world_model.ivideogpt.learner import WorldModelLearner
from world_model.metrics import psnr

TINY = dict(
    block_out_channels=(8, 8, 16, 16), layers_per_block=1, latent_channels=16, norm_num_groups=4, num_vq_embeddings=64,
    num_dyn_embeddings=64, cross_attention_dropout=0.0, blend=True,
)  # fmt: skip
SMALLER = dict(block_out_channels=(16, 16, 32), resolution=32)
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0))
AS_AUTOENCODER, AT_MOST = 20, 240  # updates
TARGET = 30.0  # dB


def blobs(side: int, frames: int, rests: int) -> Clips:
    """Four soft spots that leave the middle of the image each in its direction, after `rests` frames.

    An action is the direction.
    """
    width = side / 8
    away = torch.arange(side) - (side - 1) / 2
    clips = torch.empty(4, frames, 3, side, side)
    for clip, (down, right) in zip(clips, DIRECTIONS, strict=True):
        for t, frame in enumerate(clip):
            gone = width * max(0, t - rests)
            square = (away - gone * down)[:, None].square() + (away - gone * right)[None].square()
            frame[:] = 0.3 + 0.4 * torch.exp(-square / (2 * width**2))
    actions = torch.tensor(DIRECTIONS, dtype=torch.float)[:, None].expand(-1, frames, -1)
    return Clips(clips, actions, torch.zeros(4, frames))


def by_heart(tokenizer: TokenizerConfig, clips: Clips, action_dim: int) -> IVideoGPT:
    """A model that saw nothing but these clips, until both parts know them."""
    torch.manual_seed(0)
    model = IVideoGPT(tokenizer, dataclasses.replace(TRANSFORMER, attention_dropout=0.0), action_dim, heads=())
    future = clips.frames[:, model.layout.context_length :]
    config = dataclasses.replace(
        LEARNER,
        segment_length=clips.frames.shape[1],
        tokenizer_lr=1e-3,
        transformer_lr=3e-3,
        warmup_updates=10,
        sampled_future_frames=future.shape[1],
        quantize_after=AS_AUTOENCODER,
        revive_codes_until=60,
        mse_weight=5.0,
    )
    learner = WorldModelLearner(model, config, seed=0)

    @torch.no_grad()
    def reconstructed() -> torch.Tensor:
        return model.tokenizer(clips.frames).future

    for know, batch in ((reconstructed, {"frames": clips.frames}), (lambda: dreamt(model, clips), {"clips": clips})):
        for update in range(1, AT_MOST):
            learner.update(**batch)
            if update > AS_AUTOENCODER and update % 10 == 0 and worst(know(), future) > TARGET + 0.5:
                break
    return model


def dreamt(model: IVideoGPT, clips: Clips) -> torch.Tensor:
    """The likeliest future of the clips, from their first frames and, where the model knows them, their actions."""
    known, length = model.layout.context_length, clips.frames.shape[1]
    context, actions = clips.frames[:, :known], clips.actions[:, known - 1 : -1]
    return model.imagine(context, actions, length - known, temperature=0).frames


def worst(frames: torch.Tensor, true: torch.Tensor) -> float:
    """PSNR of the worst clip, dB."""
    return float(psnr(frames, true).mean(1).min())


@pytest.mark.parametrize(
    ("name", "changes", "action_dim", "goal"),
    [
        # Equal context frames: the actions alone tell the four apart.
        pytest.param("64", {}, 2, False, id="64x64"),
        pytest.param(
            "256",
            dict(
                block_out_channels=(8, 8, 16, 16, 32),
                resolution=64,
                patch_size=2,
                max_att_resolution=8,
                context_length=1,
            ),  # fmt: skip
            2,
            False,
            id="256x256",
        ),
        # The second frame shows where to.
        pytest.param("64", SMALLER, 0, False, id="action-free"),
        # Only the last frame, which comes first, does.
        pytest.param("64", SMALLER, 0, True, id="goal"),
    ],
)
def test_four_clips_come_back(name, changes, action_dim, goal):
    config = dataclasses.replace(sizes(TokenizerConfig, name, "paper"), **TINY | changes)
    known = config.context_length
    clips = blobs(config.resolution, frames=known + 2, rests=known - 1 if action_dim else 0)
    if goal:
        clips = Clips(*goal_first(*clips))
    future = clips.frames[:, known:]
    copied = clips.frames[:, known - 1 : known].expand_as(future)
    assert psnr(copied, future).mean(1).max() < 24  # no way to get there
    assert worst(dreamt(by_heart(config, clips, action_dim), clips), future) > TARGET

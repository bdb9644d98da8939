"""A world model as small as it gets, and clips for it."""

import dataclasses

import torch

from world_model import IVideoGPT, TokenizerConfig, TransformerConfig
from world_model.api import Clips
from world_model.ivideogpt.config import LearnerConfig

TOKENIZER = TokenizerConfig(
    in_channels=3,
    resolution=32,
    block_out_channels=(8, 8, 16, 16),
    layers_per_block=1,
    latent_channels=8,
    norm_num_groups=4,
    mid_block_add_attention=False,
    num_vq_embeddings=16,
    num_dyn_embeddings=32,
    patch_size=2,
    max_att_resolution=8,
    context_length=2,
    cross_attention_dropout=0.1,
    space_to_depth=1,
    blend=False,
)
TRANSFORMER = TransformerConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=2,
    attention_dropout=0.1,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    initializer_range=0.02,
    max_position_embeddings=512,
)
LEARNER = LearnerConfig(
    batch_size=4,
    segment_length=6,
    tokenizer_batch_size=4,
    tokenizer_span=6,
    tokenizer_lr=1e-3,
    transformer_lr=1e-3,
    warmup_updates=0,
    decay_updates=0,
    decay="linear",
    weight_decay=0.0,
    max_grad_norm=1.0,
    reward_weight=1.0,
    token_noise=0.0,
    tokenizer_dropout=True,
    sampled_future_frames=2,
    embed_codes=False,
    freeze_codebooks=False,
    quantize_after=0,
    revive_codes_until=0,
    mse_weight=0.0,
    motion_weight=0.0,
    perceptual_weights="none",
    precision="fp32",
)


def make_model(seed=0, action_dim=3, heads=("reward",), **changes):
    torch.manual_seed(seed)
    transformer = dataclasses.replace(TRANSFORMER, initializer_range=0.3)
    model = IVideoGPT(dataclasses.replace(TOKENIZER, **changes), transformer, action_dim, heads)
    torch.nn.init.normal_(model.action_linear.weight)  # zero at the start: actions would change nothing
    return model.eval()


def make_clips(batch=4, frames=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Clips(
        torch.rand(batch, frames, 3, 32, 32, generator=generator),
        torch.randn(batch, frames, 3, generator=generator),
        torch.randn(batch, frames, generator=generator),
    )

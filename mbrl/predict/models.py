"""The world models that `make predict` can predict with, both kinds behind `world_model.api`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from world_model import IVideoGPT
from world_model.api import Dreamable
from world_model.ivideogpt.weights import read_configs, read_heads
from world_model.onestep import OneStep, OneStepWorld, holds_onestep
from world_model.precision import autocast_dtype
from world_model.schema import UserError

Precision = Literal["auto", "fp32", "bf16"]


class Predictor(NamedTuple):
    world: Dreamable
    context_length: int  # K
    action_dim: int  # 0: it predicts by itself
    heads: tuple[str, ...]
    resolution: int  # height and width of a frame, pixels
    tokens: IVideoGPT | None  # the same model, where it has tokens
    autocast: Callable[[], AbstractContextManager]


def load_predictor(folder: Path, context_length: int | None, precision: Precision, device: torch.device) -> Predictor:
    """The model that was saved in `folder`, whichever its kind.

    Args:
        context_length: K; None is the model's own.
    Raises:
        UserError, WeightsError: there is no model, or it cannot be given so many frames.
    """
    dtype = autocast_dtype(precision, device)

    def autocast() -> AbstractContextManager:
        return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)

    if holds_onestep(folder):
        network = OneStep.from_pretrained(folder, precision)
        known, resolution = network.config.frames, network.resolution
        if context_length not in (None, known):
            raise UserError(f"context_length={context_length}: {folder} predicts from {known} frames")
        world = OneStepWorld(network, resolution, device)
        return Predictor(world, known, network.action_dim, world.heads, resolution, None, autocast)
    stored = read_heads(folder)
    known = context_length or read_configs(folder)[0].context_length
    model = IVideoGPT.from_pretrained(folder, stored.action_dim, known, heads=stored.heads).to(device).eval()
    size = model.tokenizer.config.resolution
    return Predictor(model, known, stored.action_dim, stored.heads, size, model, autocast)

"""What plans are dreamt in: a saved world model, or the simulator itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

import envs
from mbrl.build import ENDLESS, find_pretrained
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import UserError
from mbrl.plan.settings import PlanSettings
from mbrl.predict.models import load_predictor
from mbrl.world.simulator import SimulatorWorld
from world_model.api import Origin, Rollout

SIMULATOR = "simulator"
FRAMES = 64  # pixels a side where no model says


@dataclasses.dataclass(frozen=True)
class World:
    start: Callable[[Tensor, Origin, int], Rollout]  # context (1, K, 3, H, W) in [0, 1], its origin, seed of the draws
    context_length: int  # K
    resolution: int  # height and width of a frame, pixels
    heads: tuple[str, ...]
    longest: int | None  # steps for which code vectors can be compared; None of a model without tokens
    autocast: Callable[[], AbstractContextManager] = nullcontext
    close: Callable[[], None] = lambda: None


def load_world(settings: PlanSettings, task: str, environment: Mapping[str, Any], device: torch.device) -> World:
    """Raises UserError or WeightsError: there is no such model, or it is for other actions."""
    s = settings
    if s.model == SIMULATOR:
        # A dream may go on behind the time limit.
        endless = {**environment, "image_size": FRAMES, "episode_frames": ENDLESS * s.action_repeat}
        simulator = SimulatorWorld(envs.make(task, **endless), device)
        return World(
            start=lambda context, origin, _: simulator.start(context, origins=[origin]),
            context_length=simulator.context_length,
            resolution=FRAMES,
            heads=simulator.heads,
            longest=None,
            close=simulator.close,
        )
    predictor = load_predictor(find_pretrained(s.model, "model"), None, s.precision, device)
    env = envs.make(task, **environment)
    (action_dim,) = env.action_space.shape
    env.close()
    if predictor.action_dim != action_dim:
        raise UserError(f"model={s.model} wants {predictor.action_dim} action numbers, {task} has {action_dim}")
    longest = None
    if tokens := predictor.tokens:
        positions = tokens.transformer.config.max_position_embeddings
        longest = (positions - tokens.layout.prefix) // tokens.layout.stride

    def start(context: Tensor, origin: Origin, seed: int) -> Rollout:
        generator = torch.Generator(device).manual_seed(stream_seed(seed, "draws", origin.decision))
        return predictor.world.start(
            context, horizon=s.planning.horizon, temperature=s.temperature, top_k=s.top_k, generator=generator
        )

    return World(
        start=start,
        context_length=predictor.context_length,
        resolution=predictor.resolution,
        heads=predictor.heads,
        longest=longest,
        autocast=predictor.autocast,
    )

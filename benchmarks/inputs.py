"""Weights and data that both sides of a comparison load, written to a folder.

    weights/              the world model in the official layout
    dream.safetensors     stacks, actions, and tokens to be given in bf16
    clips.safetensors     clips for the updates of the world model
    agent.safetensors     weights of the agent, a batch, and random shifts for it
    actions.safetensors   what is done in the environment
    episodes/*.npz        as the official replay stores them

Weights are random but say something: codebooks are spread over what the encoders give, actions and rewards have
weights, and the head is its own, so that a wrong key, layer or position would show in tokens and losses.
"""

from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from agents import DrQv2, TransitionBatch
from benchmarks.options import Batches, Options
from mbrl.experiment.settings import Settings
from world_model import IVideoGPT

ACTION_DIM = 4  # of Meta-world
EPISODE_DECISIONS = 100
DECISIONS = 20  # of the environment that are compared


def write(folder: Path, settings: Settings, options: Options) -> None:
    """Fill an empty folder."""
    batches = options.cuda if settings.device == "cuda" else options.cpu
    generator = torch.Generator().manual_seed(0)
    _write_world(folder, settings, options.weights, batches, generator)
    _write_agent(folder, settings, generator)
    _write_episodes(folder / "episodes", settings, options.episodes)
    actions = torch.rand(DECISIONS, ACTION_DIM, generator=generator) * 2 - 1
    save_file({"actions": actions}, folder / "actions.safetensors")


def images(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Soft random blots: uint8 (count, 3, size, size)."""
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    return (F.interpolate(coarse, (size, size), mode="bilinear") * 255).to(torch.uint8)


def _write_world(folder: Path, settings: Settings, weights: str, batches: Batches, generator: torch.Generator) -> None:
    world, size, horizon = settings.world_model, settings.image_size, settings.rollout_horizon
    length, stack = world.learner.segment_length, settings.frame_stack
    frames = images(batches.clips * length, size, generator).view(batches.clips, length, 3, size, size)
    rewards = torch.randn(batches.clips, 1, generator=generator).expand(-1, length).contiguous()
    torch.manual_seed(0)  # what the official update draws after this seed
    chosen = torch.randperm(length - world.tokenizer.context_length)[: world.learner.sampled_future_frames]
    save_file(
        {
            "frames": frames,
            "actions": torch.rand(batches.clips, length, ACTION_DIM, generator=generator) * 2 - 1,
            # One reward a clip: the official reward target is a step late, which then changes nothing.
            "rewards": rewards,
            "chosen": chosen,
        },
        folder / "clips.safetensors",
    )
    if weights == "none":
        model = IVideoGPT(world.tokenizer, world.transformer, ACTION_DIM)
        nn.init.normal_(model.transformer.head.weight, std=world.transformer.initializer_range)
    else:
        model = IVideoGPT.from_pretrained(weights, ACTION_DIM, world.tokenizer.context_length)
    with torch.no_grad():
        _say_something(model.eval(), frames[:1].float() / 255)
    model.save_pretrained(folder / "weights")
    layout = model.layout
    forced = torch.randint(
        layout.dynamics_codes, (batches.dreams, horizon, layout.dynamics_tokens), generator=generator
    )
    save_file(
        {
            "stack": images(batches.dreams * stack, size, generator).view(batches.dreams, stack, 3, size, size),
            "actions": torch.rand(batches.dreams, horizon, ACTION_DIM, generator=generator) * 2 - 1,
            "forced": forced + layout.first_dynamics_id,
        },
        folder / "dream.safetensors",
    )


def _say_something(model: IVideoGPT, frames: Tensor) -> None:
    tokenizer, count = model.tokenizer, model.layout.context_length
    latents, memory = tokenizer.encode_context(frames[:, :count])
    dynamics = tokenizer.encode_future(frames[:, count:], memory, frames[:, count - 1])
    for codebook, given in ((tokenizer.quantize, latents), (tokenizer.dynamics_quantize, dynamics)):
        codebook.embedding.weight.normal_().mul_(given.std()).add_(given.flatten(0, -2).mean(0))
    assert model.action_linear is not None
    model.action_linear.weight.normal_(std=float(model.transformer.embedding.weight.std()))
    reward = cast(nn.Linear, model.heads["reward"])
    reward.weight.normal_(std=0.02)
    reward.bias.fill_(0.5)


def _write_agent(folder: Path, settings: Settings, generator: torch.Generator) -> None:
    s, count = settings, settings.batch_size
    shape = (3 * s.frame_stack, s.image_size, s.image_size)
    stacks = [images(count * s.frame_stack, s.image_size, generator).view(count, *shape) for _ in range(2)]
    batch = TransitionBatch(
        obs=stacks[0],
        action=torch.rand(count, ACTION_DIM, generator=generator) * 2 - 1,
        reward=torch.rand(count, 1, generator=generator) * 3,
        discount=torch.full((count, 1), s.discount**s.nstep),
        next_obs=stacks[1],
    )
    agent = DrQv2(shape, ACTION_DIM, s.drqv2, "cpu", seed=0)
    data = {f"agent.{name}": value for name, value in agent.weights().items()}
    data |= {f"batch.{name}": value for name, value in batch._asdict().items()}
    data["shifts"] = torch.randint(0, 2 * s.drqv2.random_shift + 1, (2, count, 2), generator=generator)
    save_file(data, folder / "agent.safetensors")


def _write_episodes(folder: Path, settings: Settings, count: int) -> None:
    """Episodes as the official replay stores them: stacked images, and a first step without an action."""
    s, rng = settings, np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        frames = rng.integers(0, 256, (EPISODE_DECISIONS + 1, 3, s.image_size, s.image_size), np.uint8)
        before = np.arange(len(frames))[:, None] - np.arange(s.frame_stack)[::-1]
        actions = rng.uniform(-1, 1, (len(frames), ACTION_DIM)).astype(np.float32)
        rewards = rng.uniform(0, 10, (len(frames), 1)).astype(np.float32)
        actions[0], rewards[0] = 0.0, 0.0
        np.savez(
            folder / f"20260101T000000_{number}_{EPISODE_DECISIONS}.npz",
            observation=frames[np.maximum(before, 0)].reshape(len(frames), -1, s.image_size, s.image_size),
            action=actions,
            reward=rewards,
            discount=np.ones_like(rewards),
        )

"""From settings to objects: the environment, the agent and the world model of a run."""

import dataclasses
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

import envs
from agents import Agent, DreamerV3, DrQv2, Uniform
from mbrl.replay import ReplayBuffer
from mbrl.run import stream_seed
from mbrl.settings import Settings, UserError
from world_model import IVideoGPT, WeightsError
from world_model.learner import LearnerConfig, WorldModelLearner

ROOT = Path(__file__).resolve().parent.parent
PAPER_WITHOUT_WEIGHTS = (
    "warning: preset=paper fine-tunes for a thousand updates what the paper had pre-trained for a million; without "
    "world_model.pretrained=<folder> it begins with random weights and will dream badly for long (see the README)"
)


def environment_keywords(settings: Settings) -> dict[str, Any]:
    """What the settings say of the environment, as keywords of `envs.make`."""
    s = settings
    return dict(
        action_repeat=s.action_repeat,
        frame_stack=s.frame_stack,
        episode_frames=s.episode_frames,
        success_bonus=s.success_bonus,
        camera=s.camera,
        image_size=s.image_size,
        render_quality=s.render_quality,
    )


def make_env(settings: Settings) -> envs.PixelEnv:
    """The task of the settings; every episode is reset with a seed of its own."""
    return envs.make(settings.task, **environment_keywords(settings))


def make_agent(settings: Settings, env: envs.PixelEnv, device: torch.device) -> Agent:
    """The agent of `settings.agent`. A new agent gets its line here."""
    (channels, height, width), (action_dim,) = env.observation_space.shape, env.action_space.shape
    seed = stream_seed(settings.seed, "agent")
    if settings.agent in ("drqv2", "mbpo"):
        return DrQv2((channels, height, width), action_dim, settings.drqv2, device, seed)
    if settings.agent == "dreamerv3":
        try:
            return DreamerV3((channels, height, width), action_dim, settings.dreamerv3, device, seed)
        except ValueError as error:
            raise UserError(f"image_size={settings.image_size}: {error}") from error
    if settings.agent == "uniform":
        return Uniform(action_dim, device, seed)
    raise UserError(f"agent={settings.agent} has a file in configs/agents but no line in mbrl/build.py")


def make_buffer(
    settings: Settings, name: str, action_dim: int, decisions: int, episode_decisions: int, scratch: Path | None = None
) -> ReplayBuffer:
    """A buffer for `decisions` of them in episodes of `episode_decisions`, at least one; `name` seeds its sampling.

    With `scratch`, frames that need more than `replay_memory_gb` lie in a memory-mapped file there.
    """
    s = settings
    return ReplayBuffer(
        max(decisions, episode_decisions),
        (3, s.image_size, s.image_size),
        action_dim,
        frame_stack=s.frame_stack,
        nstep=s.nstep,
        discount=s.discount,
        seed=stream_seed(s.seed, name),
        episode_decisions=episode_decisions,
        memory_limit_bytes=None if scratch is None else int(s.replay_memory_gb * 2**30),
        scratch=scratch,
    )


def local_weights(name: str) -> Path | None:
    """The folder of this name: where the user stands, or else at the project's root, where the shipped weights lie."""
    return next((folder for folder in (Path(name), ROOT / name) if folder.is_dir()), None)


def find_pretrained(name: str, key: str = "world_model.pretrained") -> Path:
    """The folder that `<key>=<name>` means: a folder, or a hub name where huggingface_hub is there."""
    if folder := local_weights(name):
        return folder
    if name.count("/") == 1 and not name.startswith((".", "/")) and importlib.util.find_spec("huggingface_hub"):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name))
    raise UserError(
        f"{key}={name}: there is no such folder (a hub name needs pip install huggingface_hub"
        f"{'' if key == 'model' else '; none starts from random weights'})"
    )


def check_world(settings: Settings) -> None:
    """Raises UserError if a size of the world model is out of range or does not go with another key."""
    world = settings.world_model
    for part in ("tokenizer", "transformer", "learner"):
        for name, value in vars(getattr(world, part)).items():
            least = 0 if name.endswith(("_updates", "_every", "_after", "_until")) else 1  # a time may be never
            if type(value) is int and value < least:
                raise UserError(f"world_model.{part}.{name}={value} is out of range: it must be at least {least}")
    if world.tokenizer.resolution != settings.image_size:
        raise UserError(
            f"world_model.tokenizer.resolution={world.tokenizer.resolution} must equal image_size={settings.image_size}"
        )
    context = f"world_model.tokenizer.context_length={world.tokenizer.context_length}"
    if settings.frame_stack < world.tokenizer.context_length:
        raise UserError(f"frame_stack={settings.frame_stack} must be at least {context}: dreams begin with a stack")
    for name in ("segment_length", "tokenizer_span"):
        if (length := getattr(world.learner, name)) <= world.tokenizer.context_length:
            raise UserError(f"world_model.learner.{name}={length} must be more than {context}")


def beyond_the_start(learner: LearnerConfig, new_transformer: bool = False) -> LearnerConfig:
    """The keys of a learner whose model does not start at random: its codes are in use, and none of them is dead."""
    embed_codes = learner.embed_codes and new_transformer
    return dataclasses.replace(learner, quantize_after=0, revive_codes_until=0, embed_codes=embed_codes)


def make_world(settings: Settings, action_dim: int, device: torch.device) -> WorldModelLearner:
    """Build the world model with its learner on `device`."""
    check_world(settings)
    world, learner = settings.world_model, settings.world_model.learner
    try:
        if world.pretrained == "none":
            if settings.preset == "paper":
                print(PAPER_WITHOUT_WEIGHTS, file=sys.stderr)
            model = IVideoGPT(world.tokenizer, world.transformer, action_dim)
        else:
            learner = beyond_the_start(learner)
            model = IVideoGPT.from_pretrained(
                find_pretrained(world.pretrained),
                action_dim,
                world.tokenizer.context_length,
                attention_dropout=world.transformer.attention_dropout,
                new_actions=True,
            )
            if (resolution := model.tokenizer.config.resolution) != settings.image_size:
                raise UserError(f"{world.pretrained} is for {resolution} pixels; image_size={settings.image_size}")
        return WorldModelLearner(model.to(device), learner, stream_seed(settings.seed, "world_model"))
    except (WeightsError, UserError):
        raise
    except ValueError as error:  # sizes that do not go together
        raise UserError(f"world_model: {error}") from error

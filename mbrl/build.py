"""From settings to objects: the environment, the agent and the world model of a run."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

import envs
from agents import AGENTS, Agent, DrQv2Config, Uniform, value_range
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import Settings, UserError
from mbrl.plan.agent import PlanningAgent
from mbrl.replay import ReplayBuffer
from mbrl.world.simulator import SimulatorWorld
from world_model import IVideoGPT, WeightsError, WorldModel
from world_model.hub import fetch, local, model_in
from world_model.ivideogpt.config import LearnerConfig, Rhythm
from world_model.ivideogpt.learner import WorldModelLearner
from world_model.onestep import OneStep, OneStepWorld
from world_model.precision import decided

OTHER_WEIGHTS = "and none starts from random weights"
PAPER_WITHOUT_WEIGHTS = (
    "warning: preset=paper fine-tunes for a thousand updates what the paper had pre-trained for a million; without "
    "world_model.pretrained=<folder> it begins with random weights and will dream badly for long (see docs/tutorial.md)"
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
        success_key=s.success_key,
        image_key=s.image_key,
    )


def make_env(settings: Settings) -> envs.PixelEnv:
    """The task of the settings; every episode is reset with a seed of its own."""
    return envs.make(settings.task, **environment_keywords(settings))


ENDLESS = 10**6  # decisions that no dream reaches


def without_clone(config: DrQv2Config) -> DrQv2Config:
    """The config where nothing was demonstrated. Raises UserError: it cannot do without a clone."""
    if config.ibrl or value_range(config.anchor_schedule)[1] > 0:
        raise UserError(
            f"drqv2.ibrl={str(config.ibrl).lower()} drqv2.anchor_schedule={config.anchor_schedule}: with "
            "demonstrations=0 there is nothing to clone; set demonstrations, or leave both keys out"
        )
    return dataclasses.replace(config, bc_updates=0)


def make_agent(settings: Settings, env: envs.PixelEnv, device: torch.device) -> Agent:
    """The agent of `settings.agent`. A new one gets its line in `AGENTS`."""
    shape, (action_dim,) = env.observation_space.shape, env.action_space.shape
    seed = stream_seed(settings.seed, "agent")
    if settings.agent == "mpc":
        return PlanningAgent(settings.planning, action_dim, seed, device, stddev=settings.exploration_stddev)
    if settings.agent == "uniform":
        return Uniform(action_dim, device, seed)
    if settings.agent not in AGENTS:
        raise UserError(f"agent={settings.agent} has a file in configs/agents but no line in agents/__init__.py")
    kind = AGENTS[settings.agent]
    config = decided(getattr(settings, kind.section), device)
    if isinstance(config, DrQv2Config) and not settings.demonstrations:
        config = without_clone(config)
    try:
        return kind.agent(shape, action_dim, config, device, seed)
    except ValueError as error:
        raise UserError(f"image_size={settings.image_size}: {error}") from error


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


def find_pretrained(name: str, key: str = "world_model.pretrained") -> Path:
    """The folder that `<key>=<name>` means: a folder, or one fetched from the hub; of a run, its world model's.

    A hub name is `<owner>/<name>` or `hub:<owner>/<name>`, and `@<revision>` pins it.
    Raises UserError: there is neither.
    """
    try:
        folder = local(name) or fetch(name)
    except UserError as error:
        raise UserError(f"{key}={error}, {OTHER_WEIGHTS}") from error
    if folder is None:
        raise UserError(f"{key}={name}: there is no such folder, {OTHER_WEIGHTS}")
    return model_in(folder)


def check_lengths(learner: LearnerConfig, context_length: int, prefix: str) -> None:
    """Raises UserError if a clip that the world model learns from would have no future frame."""
    for name in ("segment_length", "tokenizer_span"):
        if (length := getattr(learner, name)) <= context_length:
            raise UserError(f"{prefix}{name}={length} must be more than context_length={context_length}")


def check_world(settings: Settings) -> None:
    """Raises UserError if a size of the world model does not go with another key."""
    world = settings.world_model
    if world.tokenizer.resolution != settings.image_size:
        raise UserError(
            f"world_model.tokenizer.resolution={world.tokenizer.resolution} must equal image_size={settings.image_size}"
        )
    known = world.tokenizer.context_length
    if settings.frame_stack < known:
        raise UserError(
            f"frame_stack={settings.frame_stack} must be at least world_model.tokenizer.context_length={known}: "
            "dreams begin with a stack"
        )
    check_lengths(world.learner, known, "world_model.learner.")
    tokens, positions = world.tokenizer.layout.length(world.learner.segment_length), world.transformer
    if world.pretrained == "none" and positions.max_position_embeddings < tokens:
        raise UserError(
            f"world_model.transformer.max_position_embeddings={positions.max_position_embeddings} must be at least "
            f"{tokens}, the tokens of world_model.learner.segment_length={world.learner.segment_length} frames"
        )


def at_random(learner: LearnerConfig) -> LearnerConfig:
    """The keys of a learner whose model starts at random: its codes must be free to move. Raises UserError."""
    if learner.freeze_codebooks and (learner.quantize_after or learner.revive_codes_until):
        raise UserError(
            "learner.freeze_codebooks=true would keep random codes: it goes with pre-trained weights, "
            "or with quantize_after=0 and revive_codes_until=0"
        )
    return dataclasses.replace(learner, freeze_codebooks=bool(learner.freeze_codebooks))


def beyond_the_start(learner: LearnerConfig, new_transformer: bool = False) -> LearnerConfig:
    """The keys of a learner whose model does not start at random: its codes are in use, and none of them is dead.

    They stay as they are unless `freeze_codebooks` is false, as in the official training beside an agent.
    """
    return dataclasses.replace(
        learner,
        quantize_after=0,
        revive_codes_until=0,
        embed_codes=learner.embed_codes and new_transformer,
        freeze_codebooks=learner.freeze_codebooks is not False,
    )


def make_world(settings: Settings, env: envs.PixelEnv, device: torch.device) -> WorldModel:
    """The world model of `world_model.kind`. A new kind gets its line here."""
    kind = settings.world_model.kind
    if "reward" not in settings.world_model.heads:
        raise UserError("world_model.heads must hold reward: dreams without rewards teach nothing")
    if kind == "simulator":
        # A dream may go on behind the time limit, as it does in a model that has learned nothing of it.
        endless = environment_keywords(settings) | {"episode_frames": ENDLESS * settings.action_repeat}
        return SimulatorWorld(envs.make(settings.task, **endless), device)
    return make_onestep(settings, env, device) if kind == "onestep" else make_ivideogpt(settings, env, device)


def make_onestep(settings: Settings, env: envs.PixelEnv, device: torch.device) -> OneStepWorld:
    """The one-step predictor with its learner on `device`."""
    config, pretrained = settings.world_model.onestep, settings.world_model.onestep_pretrained
    if settings.frame_stack < config.frames:
        raise UserError(
            f"frame_stack={settings.frame_stack} must be at least world_model.onestep.frames={config.frames}: "
            "dreams begin with a stack"
        )
    if settings.image_size % 8:
        raise UserError(f"image_size={settings.image_size} must be a multiple of 8 for world_model.kind=onestep")
    model = OneStep(config, env.action_space.shape[0], settings.world_model.heads)
    world = OneStepWorld(model, settings.image_size, device, settings.action_repeat, config.update_every_frames)
    if pretrained != "none":
        model.load_pretrained(find_pretrained(pretrained, "world_model.onestep_pretrained"))
    return world


def make_ivideogpt(settings: Settings, env: envs.PixelEnv, device: torch.device) -> WorldModelLearner:
    """iVideoGPT with its learner on `device`."""
    check_world(settings)
    (action_dim,) = env.action_space.shape
    world, learner = settings.world_model, settings.world_model.learner
    span = min(learner.tokenizer_span, env.episode_decisions + 1)
    learner = dataclasses.replace(learner, tokenizer_span=span)
    rhythm = Rhythm(
        settings.update_transformer_every_frames, settings.update_tokenizer_every_frames, settings.action_repeat
    )
    try:
        if world.pretrained == "none":
            if settings.preset == "paper":
                print(PAPER_WITHOUT_WEIGHTS, file=sys.stderr)
            learner = at_random(learner)
            model = IVideoGPT(world.tokenizer, world.transformer, action_dim, world.heads)
        else:
            learner = beyond_the_start(learner)
            model = IVideoGPT.from_pretrained(
                find_pretrained(world.pretrained),
                action_dim,
                world.tokenizer.context_length,
                attention_dropout=world.transformer.attention_dropout,
                new_actions=True,
                heads=world.heads,
            )
            if (resolution := model.tokenizer.config.resolution) != settings.image_size:
                raise UserError(f"{world.pretrained} is for {resolution} pixels; image_size={settings.image_size}")
        return WorldModelLearner(model.to(device), learner, stream_seed(settings.seed, "world_model"), rhythm=rhythm)
    except (WeightsError, UserError):
        raise
    except ValueError as error:  # sizes that do not go together
        raise UserError(f"world_model: {error}") from error

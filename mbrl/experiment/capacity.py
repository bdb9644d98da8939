"""What settings ask of memory and disk, against what there is: a run that cannot fit is refused before it is tried.

    refuse_too_large(needs_of_run(settings), settings.device)

Each need is less than what will be used: what is left out are activations and whatever is small. So nothing that fits
is refused; what is not foreseen here ends in the line that `mbrl/experiment/command.py` has for a full memory.
"""

import dataclasses
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import envs
from agents import PlannerConfig
from agents.dreamerv3.config import SIZES
from mbrl.experiment.settings import Settings, UserError, pick_device
from world_model import TokenizerConfig, TransformerConfig
from world_model.ivideogpt.config import LearnerConfig
from world_model.onestep import OneStepLearning

TRAINED = 16  # bytes a parameter: the weight, its gradient and two moments
SLOT = 40  # bytes of a replay's decision beside its frames
PIXEL = 5  # bytes of a value of an image: uint8, and a float for a network
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Need(NamedTuple):
    keys: str  # that it follows from, as typed
    bytes: int
    where: str = "memory"  # of this machine; "device": of the GPU, if there is one; otherwise a folder, on its disk


def refuse_too_large(needs: Iterable[Need], device: str) -> None:
    """Raises UserError, with the largest need, if one place cannot hold all that goes there."""
    by_place: dict[str, list[Need]] = {}
    gpu = pick_device(device).type == "cuda"
    for need in needs:
        by_place.setdefault("memory" if need.where == "device" and not gpu else need.where, []).append(need)
    for place, some in by_place.items():
        room, total, largest = space(place), sum(need.bytes for need in some), max(some, key=lambda need: need.bytes)
        if total > room:
            name = {"memory": "of memory", "device": "of GPU memory"}.get(place, f"on the disk of {place}")
            raise UserError(
                f"{largest.keys} takes {amount(largest.bytes)} or more, with all else {amount(total)}; "
                f"there are {amount(room)} {name}: lower it"
            )


def space(place: str) -> int:
    """Bytes of memory or of GPU memory in all, or of a disk that are free."""
    if place == "device":
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    if place != "memory":
        folder = Path(place).absolute()
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    limits = [Path(file).read_text().strip() for file in CGROUPS if Path(file).is_file()]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([pages, *(int(limit) for limit in limits if limit.isdecimal())])


def amount(count: float) -> str:
    """1.5 GB"""
    for name, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.3g} {name}"
    return f"{count / 1e3:.3g} kB"


def needs_of_run(settings: Settings) -> Iterator[Need]:
    """Of `make train`."""
    s, size, episode = settings, f"image_size={settings.image_size}", _decisions(settings)
    decisions = max(episode, s.replay_buffer_frames // s.action_repeat)
    keys = f"replay_buffer_frames={s.replay_buffer_frames}, episode_frames={episode * s.action_repeat}, {size}"
    yield from _buffer(keys, decisions, episode, s)
    if isinstance(s.demonstrations, int):
        demonstrations = 2 * s.demonstrations * (episode + 1) * 3 * s.image_size**2
        yield Need(f"demonstrations={s.demonstrations}, {size}", demonstrations)
    yield from needs_of_evaluation(s)
    if s.agent == "dreamerv3":
        yield from _needs_of_dreamer(s)
    if s.agent in ("mbpo", "drqv2"):
        yield from _needs_of_drqv2(s)
    if s.agent == "mbpo" and s.real_ratio < 1:
        yield from _needs_of_dreams(s)
        yield from _needs_of_world(s)
    if s.agent == "mpc":
        yield from needs_of_planning(s.planning)
        yield from _needs_of_world(s)


def needs_of_evaluation(settings: Settings) -> Iterator[Need]:
    """Of the episodes that are played, which are kept until all are."""
    s = settings
    frames = s.num_eval_episodes * (_decisions(s) + 1) * 3 * s.image_size**2
    yield Need(f"num_eval_episodes={s.num_eval_episodes}, image_size={s.image_size}", frames)


def _decisions(settings: Settings) -> int:
    """Of an episode."""
    frames = settings.episode_frames or envs.suite_of(settings.task).episode_frames
    return max(1, frames // settings.action_repeat)


def _needs_of_drqv2(settings: Settings) -> Iterator[Need]:
    s, c = settings, settings.drqv2
    stack = PIXEL * 3 * s.frame_stack * s.image_size**2
    size = f"image_size={s.image_size}, frame_stack={s.frame_stack}"
    yield Need(f"batch_size={s.batch_size}, {size}", 2 * s.batch_size * stack, "device")
    yield Need(f"drqv2.bc_batch_size={c.bc_batch_size}, {size}", c.bc_batch_size * stack, "device")
    yield Need(f"nstep={s.nstep}, batch_size={s.batch_size}", 24 * s.nstep * s.batch_size)
    weights = 3 * (c.hidden_dim**2 + c.feature_dim * c.hidden_dim)  # of an actor and two critics
    yield Need(f"drqv2.hidden_dim={c.hidden_dim}, feature_dim={c.feature_dim}", TRAINED * weights, "device")


def _needs_of_dreamer(settings: Settings) -> Iterator[Need]:
    c, size = settings.dreamerv3, settings.image_size
    steps, keys = c.batch_size * c.batch_length, f"dreamerv3.batch_size={c.batch_size}, batch_length={c.batch_length}"
    yield Need(f"{keys}, image_size={size}", steps * 3 * size**2 * PIXEL, "device")
    imagined = 4 * steps * c.imagination_length * (SIZES[c.size].deter + c.bins)
    yield Need(f"{keys}, imagination_length={c.imagination_length}, bins={c.bins}", imagined, "device")


def _buffer(keys: str, decisions: int, episode: int, settings: Settings) -> Iterator[Need]:
    s = settings
    slots = decisions + s.frame_stack * -(-decisions // episode)
    frames = slots * 3 * s.image_size**2
    folder = s.run_root if frames > s.replay_memory_gb * 2**30 else "memory"
    yield Need(f"{keys}, frame_stack={s.frame_stack}", frames, folder)
    yield Need(keys, slots * SLOT)


def _needs_of_dreams(settings: Settings) -> Iterator[Need]:
    """Of what a world model dreams for an agent."""
    s, size = settings, f"image_size={settings.image_size}"
    decisions = max(s.rollout_horizon, s.imagined_buffer_frames // s.action_repeat)
    yield from _buffer(f"imagined_buffer_frames={s.imagined_buffer_frames}, {size}", decisions, s.rollout_horizon, s)
    keys = f"rollout_batch={s.rollout_batch}, rollout_horizon={s.rollout_horizon}, {size}"
    dreamt = s.rollout_batch * (s.frame_stack + s.rollout_horizon) * 3 * s.image_size**2
    yield Need(keys, PIXEL * dreamt, "device")


def needs_of_planning(planner: PlannerConfig) -> Iterator[Need]:
    """Of the candidates of a planner."""
    candidates = 12 * planner.samples * planner.horizon  # three floats of each action
    yield Need(f"planning.samples={planner.samples}, planning.horizon={planner.horizon}", candidates, "device")


def _needs_of_world(settings: Settings) -> Iterator[Need]:
    s, world = settings, settings.world_model
    if world.kind == "onestep":
        yield from needs_of_onestep(world.onestep, s.image_size, "world_model.onestep.")
    elif world.kind == "ivideogpt":
        span = min(world.learner.tokenizer_span, _decisions(s) + 1)
        learner = dataclasses.replace(world.learner, tokenizer_span=span)
        yield from needs_of_learner(learner, s.image_size, "world_model.learner.")
        if world.pretrained == "none":
            yield from needs_of_model(world.tokenizer, world.transformer, learner, "world_model.")


def needs_of_onestep(config: OneStepLearning, image_size: int, prefix: str) -> Iterator[Need]:
    """Of the one-step predictor and the clips that it learns from."""
    c = config
    yield Need(f"{prefix}width={c.width}", TRAINED * c.parameters, "device")
    keys = f"{prefix}batch_size={c.batch_size}, frames={c.frames}, steps={c.steps}, image_size={image_size}"
    yield Need(keys, c.batch_size * (c.frames + c.steps) * 3 * image_size**2 * PIXEL, "device")


def needs_of_learner(learner: LearnerConfig, image_size: int, prefix: str) -> Iterator[Need]:
    """Of the clips that iVideoGPT learns from."""
    c = learner
    for name, count, length, frames in (
        ("batch_size", c.batch_size, "segment_length", c.segment_length),
        ("tokenizer_batch_size", c.tokenizer_batch_size, "tokenizer_span", c.tokenizer_span),
    ):
        keys = f"{prefix}{name}={count}, {length}={frames}, image_size={image_size}"
        yield Need(keys, count * frames * 3 * image_size**2 * PIXEL, "device")


def needs_of_model(
    tokenizer: TokenizerConfig, transformer: TransformerConfig, learner: LearnerConfig, prefix: str
) -> Iterator[Need]:
    """Of iVideoGPT with new weights, and of what it computes of a batch."""
    t, layout = transformer, tokenizer.layout
    tokens = learner.batch_size * layout.length(learner.segment_length)
    yield Need(
        f"{prefix}tokenizer.block_out_channels={list(tokenizer.block_out_channels)}, "
        f"layers_per_block={tokenizer.layers_per_block}, num_vq_embeddings={tokenizer.num_vq_embeddings}, "
        f"num_dyn_embeddings={tokenizer.num_dyn_embeddings}, latent_channels={tokenizer.latent_channels}",
        TRAINED * tokenizer.least_parameters,
        "device",
    )
    yield Need(
        f"{prefix}transformer.hidden_size={t.hidden_size}, num_hidden_layers={t.num_hidden_layers}, "
        f"intermediate_size={t.intermediate_size}, tokenizer.num_vq_embeddings={tokenizer.num_vq_embeddings}, "
        f"num_dyn_embeddings={tokenizer.num_dyn_embeddings}",
        TRAINED * t.parameters(layout.vocabulary),
        "device",
    )
    yield Need(
        f"{prefix}learner.batch_size={learner.batch_size}, segment_length={learner.segment_length}: {tokens} tokens",
        4 * tokens * (layout.dynamics_codes + t.hidden_size * t.num_hidden_layers),
        "device",
    )

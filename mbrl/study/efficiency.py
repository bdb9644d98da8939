"""Compressive tokens against tokens of single frames: memory, time and quality, after equal training.

Three tokenizers of equal channels, without `blend`, the two single-frame ones with as many tokens a frame as the
compressive one has for a future and for a context frame; the same transformer on each. Table "tokenization efficiency"
of iVideoGPT (arXiv 2405.15223) at any size.

Letters: B clips, T frames of a clip, K of them given, H predicted.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mbrl.experiment.bars import progress_bar
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import UserError, pick_device
from mbrl.pretrain.models import heads_of, sizes
from mbrl.pretrain.pretrain import PretrainSettings, check_codes_are_used
from mbrl.rollout import to_float
from world_model import IVideoGPT, TokenizerConfig, TransformerConfig
from world_model.api import Clips
from world_model.data import ClipDataset
from world_model.ivideogpt.config import TokenClips
from world_model.ivideogpt.learner import WorldModelLearner
from world_model.ivideogpt.per_frame import PerFrameGPT
from world_model.metrics import moving_errors, psnr

MIB = 2**20
PLAIN = {"start_from": "none", "mixture": "none", "episodes": None, "goal": False}
Variant = tuple[type[IVideoGPT], TokenizerConfig]


def variants(config: TokenizerConfig) -> dict[str, Variant]:
    """By a name that tells the tokens. Raises UserError.

    None has `blend`: a tokenizer that codes every frame by itself has nothing to draw over.
    """
    config = dataclasses.replace(config, blend=False)
    context, future = config.context_resolution, config.dynamics_resolution
    halvings = config.patch_size.bit_length() - 1
    if config.patch_size != 2**halvings:
        raise UserError(f"patch_size={config.patch_size}: single frames of as few tokens take a power of two")
    channels = config.block_out_channels
    deeper = dataclasses.replace(config, block_out_channels=channels + channels[-1:] * halvings)
    return {
        f"compressive, {context}x{context} and {future}x{future}": (IVideoGPT, config),
        f"each frame {future}x{future}": (PerFrameGPT, deeper),
        f"each frame {context}x{context}": (PerFrameGPT, config),
    }


def measure(settings: PretrainSettings, held_out: Callable[[IVideoGPT], Clips], repeats: int) -> list[dict[str, Any]]:
    """A row for each tokenizer: train it, look at held-out clips through it, then time the transformer on its tokens.

    Raises UserError: a key asks for something else than new tokenizers on all episodes.
    """
    for key, plain in PLAIN.items():
        if (value := getattr(settings, key)) != plain:
            raise UserError(f"{key}={value}: this study trains new tokenizers on all episodes as they are")
    if settings.discriminator.weight or not settings.augmentation.nothing:
        raise UserError("this study trains tokenizers without discriminator and augmentation")
    check_codes_are_used(settings.learner, settings.tokenizer_updates)
    config = sizes(TokenizerConfig, settings.tokenizer, settings.preset)
    if settings.context_length is not None:
        config = dataclasses.replace(config, context_length=settings.context_length)
    return [
        {"tokens": name} | Measurement(settings, *variant, held_out).row(repeats)
        for name, variant in variants(config).items()
    ]


class Measurement:
    def __init__(
        self,
        settings: PretrainSettings,
        kind: type[IVideoGPT],
        config: TokenizerConfig,
        held_out: Callable[[IVideoGPT], Clips],
    ) -> None:
        s = self.settings = settings
        self.device = pick_device(s.device)
        self.data = ClipDataset(s.data, "train", s.held_out_every)
        if self.data.frame_shape[1:] != (config.resolution, config.resolution):
            raise UserError(f"{s.data} has frames {self.data.frame_shape}, the model wants {config.resolution} pixels")
        longest = max(s.learner.segment_length, s.learner.tokenizer_span)
        self.data.sample(1, longest, np.random.default_rng(0))  # says now if no episode is long enough
        torch.manual_seed(stream_seed(s.seed, "weights"))
        of_transformer = sizes(TransformerConfig, s.transformer, s.preset)
        action_dim = self.data.action_dim if s.actions else 0
        self.model = kind(config, of_transformer, action_dim, heads_of(s.rewards)).to(self.device)
        self.learner = WorldModelLearner(self.model, s.learner, stream_seed(s.seed, "world_model"))
        self.clips = held_out(self.model)

    def row(self, repeats: int) -> dict[str, Any]:
        layout, s = self.model.layout, self.settings
        known, length = layout.context_length, s.learner.segment_length
        self.train_tokenizer()
        quality = self.quality()
        batch = self.token_clips()
        kept = kept_for_backward(self.model, lambda: self.learner.update(batch))
        return {
            "tokens a clip": layout.length(length),
            "a frame": layout.dynamics_tokens,
            **quality,
            "training step s": self.seconds(lambda: self.learner.update(batch), repeats),
            "activations MiB": kept / MIB,
            f"rollout of {s.horizon} frames s": self.seconds(self.dream, repeats),
            "cache MiB": self.cache_bytes(known + s.horizon) / MIB,
        }

    def train_tokenizer(self) -> None:
        """On the same clips in the same order, whatever the tokenizer."""
        s, generator = self.settings, np.random.default_rng(stream_seed(self.settings.seed, "clips"))
        name = f"tokenizer, {self.model.layout.dynamics_tokens} tokens a frame"
        for _ in progress_bar(range(s.tokenizer_updates), desc=name, unit="update"):
            batch = self.data.sample(s.learner.tokenizer_batch_size, s.learner.tokenizer_span, generator)
            self.learner.update(frames=to_float(batch.frames.to(self.device)))

    @torch.no_grad()
    def quality(self) -> dict[str, float]:
        """How well the tokenizer reconstructs held-out future frames."""
        true = to_float(self.clips.frames.to(self.device))
        known = self.model.layout.context_length
        with self.learner.autocast():
            parts = [self.model.tokenizer(part).future.float().clamp(0, 1) for part in true.split(8)]
        reconstructed, future = torch.cat(parts), true[:, known:]
        errors = moving_errors(reconstructed, future, true[:, known - 1])
        return {"psnr": float(psnr(reconstructed, future).mean()), "moving_error_ratio": errors.ratio}

    def token_clips(self) -> TokenClips:
        """A batch as the transformer learns from."""
        learner = self.settings.learner
        batch = self.data.sample(learner.batch_size, learner.segment_length, np.random.default_rng(0))
        frames, actions, rewards = (field.to(self.device) for field in batch[:3])
        with self.learner.autocast():
            return TokenClips(self.model.tokens(to_float(frames))[0], actions, rewards)

    def dream(self) -> None:
        """One clip, as the paper times it."""
        known = self.model.layout.context_length
        frames, actions = (field[:1].to(self.device) for field in self.clips[:2])
        with self.learner.autocast():
            self.model.imagine(to_float(frames[:, :known]), actions[:, known - 1 : -1], self.settings.horizon)

    def cache_bytes(self, frames: int) -> int:
        """Keys and values of the rollout of one clip."""
        with self.learner.autocast():
            cache = self.model.transformer.new_cache(1, self.model.layout.length(frames))
        return cache.keys.nbytes + cache.values.nbytes

    def seconds(self, call: Callable[[], object], repeats: int) -> float:
        """Median, after once to warm up."""
        measured = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            measured.append(time.perf_counter() - start)
        return statistics.median(measured[1:])


def kept_for_backward(model: torch.nn.Module, call: Callable[[], object]) -> int:
    """Bytes that the forward pass of `call` keeps for its backward pass, without the weights: activations."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        call()
    return sum(kept.values())

"""Pre-train a world model on recorded video: `make pretrain`, `python -m mbrl.pretrain key=value ...`.

First the tokenizer, then the transformer with its action and reward heads on the tokens of the finished tokenizer
(iVideoGPT, section 4.1). The folder `out` holds logs and checkpoints, so the same command continues after any stop,
and at the end the model in the official layout, for `world_model.pretrained=<out>/model`. How to start it on many GPUs
or machines: `mbrl/pretrain/distributed.py`. `kind=onestep` pre-trains the one-step predictor on the same clips instead:
`mbrl/pretrain/onestep.py`.
"""

import dataclasses
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor

from mbrl.build import at_random, beyond_the_start, check_lengths
from mbrl.experiment import checkpoints
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.capacity import Need, needs_of_learner, needs_of_model, refuse_too_large
from mbrl.experiment.logger import Logger
from mbrl.experiment.planned import dry_run
from mbrl.experiment.run import RunFinished, lock_folder, stream_seed
from mbrl.experiment.settings import UserError, load_plain, pick_device, typed_keys
from mbrl.pretrain import token_cache
from mbrl.pretrain.distributed import joined_processes
from mbrl.pretrain.folder import LOG_UPDATES, check_same, held_out_episodes, log_validation, note_start
from mbrl.pretrain.mixture import load_mixture, weights
from mbrl.pretrain.models import make_model, note_held_out, sizes
from mbrl.pretrain.onestep import OneStepPretraining
from mbrl.pretrain.settings import PretrainSettings, check_keys
from mbrl.rollout import to_float
from world_model import IVideoGPT, TokenizerConfig, TransformerConfig
from world_model.api import Clips
from world_model.data import ClipDataset, goal_first
from world_model.data.augmentation import augment
from world_model.ivideogpt import parallel
from world_model.ivideogpt.config import LearnerConfig, TokenClips
from world_model.ivideogpt.learner import WorldModelLearner

TOKENIZED = 16  # clips at a time


class Pretraining:
    """A pre-training, new or continued from the checkpoint in its folder, which is locked until `close`.

    Args:
        opened: false only looks at settings and data, and leaves the folder as it is.
    Raises:
        RunFinished: it is complete.
        UserError, DataError, WeightsError: the settings, the data or the folder do not fit.
    """

    def __init__(self, settings: PretrainSettings, opened: bool = True) -> None:
        s = self.settings = settings
        self.folder = Path(s.out)
        self.device = pick_device(s.device)
        parts = parallel.processes() * s.accumulate
        for name in ("batch_size", "tokenizer_batch_size"):
            if (size := getattr(s.learner, name)) % parts:
                raise UserError(f"learner.{name}={size} cannot be split into {parts} parts (processes x accumulate)")
        self.mixture = load_mixture(s.mixture) if s.mixture != "none" else None
        self.train_data = self._train_data("tokenizer")
        self.held_out = held_out_episodes(s)
        longest = max(s.learner.segment_length, s.learner.tokenizer_span)
        self.train_data.sample(1, longest, np.random.default_rng(0))  # says now if no episode is long enough
        refuse_too_large(self._needs(parts), s.device)
        torch.manual_seed(stream_seed(s.seed, "weights"))
        model = self._make_model().to(self.device)
        check_lengths(s.learner, model.layout.context_length, "learner.")
        if s.start_from == "none":
            learner = at_random(s.learner)
        else:
            learner = beyond_the_start(s.learner, new_transformer=s.transformer != "auto")
        if s.sharded and learner.embed_codes:
            raise UserError("learner.embed_codes=true needs whole embeddings: set it or sharded to false")
        if self.stages.get("transformer"):
            check_codes_are_used(learner, self.stages.get("tokenizer", 0))
        seed = stream_seed(s.seed, "world_model")
        self.world = WorldModelLearner(model, learner, seed, s.discriminator, s.accumulate, s.sharded)
        if parallel.rank():
            torch.manual_seed(stream_seed(s.seed, "dropout", parallel.rank()))  # all that differs between processes
        self.generator = np.random.default_rng(stream_seed(s.seed, "clips"))
        self.seconds = 0.0  # of the training before this start
        self.logger: Logger | None = None
        self._lock: TextIO | None = None
        try:
            if opened:
                self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """Continue from the folder's checkpoint, if there is one. The first process alone writes."""
        s, checkpoint = self.settings, None
        if parallel.rank() == 0:
            (self.folder / "videos").mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.folder)
            if checkpoint := checkpoints.latest(self.folder / "checkpoints"):
                check_same(self.folder, s)
        parallel.wait()  # `latest` mends the folder after a kill: one at a time
        if checkpoint := checkpoint or checkpoints.latest(self.folder / "checkpoints"):
            self._restore(checkpoint)
        if parallel.rank() == 0:
            note_start(self.folder, s)
        if self.update >= self.total:
            raise RunFinished(f"{self.folder} is finished: its model is in {self.folder / 'model'}")
        if parallel.rank() == 0:
            self.logger = Logger(self.folder, self.update if checkpoint else None, self.seconds, tables=False)

    def close(self) -> None:
        """Close the logs and let another process have the folder."""
        if self.logger is not None:
            self.logger.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "Pretraining":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _needs(self, parts: int) -> Iterator[Need]:
        s, size = self.settings, self.train_data.frame_shape[1]
        part = dataclasses.replace(
            s.learner,
            batch_size=s.learner.batch_size // parts,
            tokenizer_batch_size=s.learner.tokenizer_batch_size // parts,
            token_noise=0.0,  # needs two clips of the whole batch, not of a part
        )
        yield from needs_of_learner(part, size, "learner.")
        if s.start_from == "none" and not s.sharded:
            of_tokenizer, of_transformer = (
                sizes(TokenizerConfig, s.tokenizer, s.preset),
                sizes(TransformerConfig, s.transformer, s.preset),
            )
            yield from needs_of_model(of_tokenizer, of_transformer, part, "")
        kept = s.cached_clips * s.learner.segment_length * 4 * (2 + self.train_data.action_dim)
        yield Need(f"cached_clips={s.cached_clips}, learner.segment_length={s.learner.segment_length}", kept)

    def _make_model(self) -> IVideoGPT:
        s = self.settings
        action_dim = self.train_data.action_dim if s.actions else 0
        model = make_model(s.tokenizer, s.transformer, s.preset, s.start_from, action_dim, s.context_length, s.rewards)
        if s.goal and model.layout.context_length < 2:
            raise UserError("goal=true needs context_length=2 or more: the goal and the first frame")
        resolution = model.tokenizer.config.resolution
        if self.train_data.frame_shape[1:] != (resolution, resolution):
            raise UserError(f"{s.data} has frames {self.train_data.frame_shape}, the model wants {resolution} pixels")
        return model

    @property
    def stages(self) -> dict[str, int]:
        """Updates of each stage, in order."""
        s = self.settings
        totals = {"tokenizer": s.tokenizer_updates, "transformer": s.transformer_updates}
        return totals if s.stage == "both" else {s.stage: totals[s.stage]}

    @property
    def update(self) -> int:
        """Updates done, of all stages."""
        return sum(self.world.updates.values())

    @property
    def total(self) -> int:
        return sum(self.stages.values())

    def plan(self) -> str:
        """What training will do, in two lines."""
        s, data, learner = self.settings, self.train_data, self.settings.learner
        sizes = {"tokenizer": learner.tokenizer_batch_size, "transformer": learner.batch_size}
        stages = ", then ".join(
            f"{count:,} updates of the {name} ({sizes[name]} clips)" for name, count in self.stages.items()
        )
        parameters = sum(parameter.numel() for parameter in self.world.model.parameters())
        # Weights and the two moments of Adam, in each checkpoint that is kept.
        checkpoint_gb = checkpoints.KEEP * 3 * 4 * parameters / 1e9
        return (
            f"pre-training {parameters / 1e6:.1f} M parameters on {data.num_episodes:,} episodes "
            f"({data.num_frames:,} frames) of {s.data}: {stages}; {self.update:,} are done\n"
            f"into {self.folder}: checkpoints every {s.checkpoint_every_updates:,} updates "
            f"(up to {checkpoint_gb:.2g} GB in all), at the end the model"
        )

    def train(self) -> None:
        s = self.settings
        quiet = self.logger is None
        with progress_bar(total=self.total, initial=self.update, unit="update", disable=quiet) as bar:
            for stage in self._schedule():
                bar.set_description(stage, refresh=False)
                clips, frames = self._batch(stage)
                metrics = self.world.update(clips, frames)
                bar.update()
                if self.logger is not None:
                    self.logger.record("world_model", metrics)
                    if self.update % LOG_UPDATES == 0:
                        self.logger.flush(self.update)
                if self.update % s.validate_every_updates == 0 or self.update == self.total:
                    self._validate()
                if self.update % s.checkpoint_every_updates == 0:
                    self._save()
        world = self.world.in_one_piece()
        if self.logger is not None:
            world.model.save_pretrained(self.folder / "model")
            note_held_out(self.folder / "model", self.settings.data, self.settings.held_out_every)
        self._save()

    def _schedule(self) -> Iterator[str]:
        """The stage of every update that is left."""
        for stage, updates in self.stages.items():
            while self.world.updates[stage] < updates:
                yield stage

    def _batch(self, stage: str) -> tuple[Clips | TokenClips | None, Tensor | None]:
        """This process's part: (clips, None) for the transformer, (None, frames) for the tokenizer."""
        learner, cached = self.settings.learner, self.settings.cached_clips
        if stage == "tokenizer":
            return None, self._clips(self.train_data, learner.tokenizer_batch_size, learner.tokenizer_span).frames
        if not cached:
            return self._clips(self.transformer_data, learner.batch_size, learner.segment_length), None
        chosen = self.generator.integers(cached, size=learner.batch_size)[parallel.local_slice(learner.batch_size)]
        tokens, actions, rewards = (field[torch.from_numpy(chosen)].to(self.device) for field in self.tokens)
        return TokenClips(tokens.long(), actions, rewards), None

    def _clips(self, data: ClipDataset, count: int, length: int) -> Clips:
        """This process's part of `count` clips."""
        windows = self._draw(data, count, length, self.generator)
        episodes, starts, drawn = (field[parallel.local_slice(count)] for field in windows)
        return self._read(data, episodes, starts, drawn, length)

    def _draw(
        self, data: ClipDataset, count: int, length: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Episodes, starts and augmentation of `count` clips: the same in all processes."""
        episodes, starts = data.draw(count, length, generator)
        augmentation = self.settings.augmentation
        return episodes, starts, np.empty((count, 0)) if augmentation.nothing else augmentation.draw(count, generator)

    def _read(
        self, data: ClipDataset, episodes: np.ndarray, starts: np.ndarray, drawn: np.ndarray, length: int
    ) -> Clips:
        batch = data.windows(episodes, starts, length)
        if self.settings.goal:
            batch = batch.map(lambda field: goal_first(field)[0])
        frames, actions, rewards = (field.to(self.device) for field in batch[:3])
        frames = to_float(frames)
        return Clips(augment(frames, drawn) if drawn.size else frames, actions, rewards)

    def _train_data(self, stage: str) -> ClipDataset:
        """What a stage learns from: of a mixture, the transformer may see a part only."""
        s = self.settings
        share = weights(self.mixture, stage) if self.mixture else None
        data = ClipDataset(s.data, "train", s.held_out_every, share)
        if s.episodes is not None:
            data.keep(s.episodes, np.random.default_rng(stream_seed(s.seed, "episodes")))
        return data

    @functools.cached_property
    def transformer_data(self) -> ClipDataset:
        return self._train_data("transformer") if self.mixture else self.train_data

    @functools.cached_property
    def tokens(self) -> TokenClips:
        """`cached_clips` clips under the finished tokenizer, int32 tokens; made once and kept in the folder.

        Made again if the tokenizer has learned since, or if the file is damaged.
        """
        s, path = self.settings, self.folder / "tokens.safetensors"
        tokenizer = self.world.model.tokenizer
        if path.exists():
            if (cached := token_cache.load(path, tokenizer)) is not None:
                return cached
            if self.logger is not None:
                warnings.warn(f"{path} is damaged or from another state of the tokenizer: made again", stacklevel=2)
        generator, length = np.random.default_rng(stream_seed(s.seed, "cached clips")), s.learner.segment_length
        fields = TokenClips(
            torch.zeros(s.cached_clips, self.world.model.layout.length(length), dtype=torch.int32),
            torch.zeros(s.cached_clips, length, self.train_data.action_dim),
            torch.zeros(s.cached_clips, length),
        )
        firsts = progress_bar(
            range(0, s.cached_clips, TOKENIZED), desc="clips to tokens", leave=False, disable=self.logger is None
        )
        for i, first in enumerate(firsts):
            rows = slice(first, min(first + TOKENIZED, s.cached_clips))
            windows = self._draw(self.transformer_data, rows.stop - first, length, generator)
            if i % parallel.processes() == parallel.rank():  # of the others' the zeros stay
                clips = self._read(self.transformer_data, *windows, length)
                with self.world.autocast():
                    tokens, _ = self.world.model.tokens(clips.frames)
                for field, part in zip(fields, (tokens, clips.actions, clips.rewards), strict=True):
                    field[rows] = part.cpu()
        cache = TokenClips(*(parallel.all_reduce_sum(field.to(self.device)).cpu() for field in fields))
        if parallel.rank() == 0:
            token_cache.save(path, cache, tokenizer)
        return cache

    def _validate(self) -> None:
        world = self.world.in_one_piece()
        if self.logger is not None:
            log_validation(self.logger, self.update, world, self.held_out, self.settings)

    def _save(self) -> None:
        parts = {
            "world_model.safetensors": parallel.full_state(self.world.model.state_dict()),
            "world_model.pt": self.world.state(),
            "torch.pt": parallel.everyone(
                {
                    "cpu": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
                }
            ),
        }
        if self.logger is None:
            return
        self.logger.flush(self.update)
        self.logger.sync()
        parts["pretraining.json"] = {
            "wall_time_s": self.logger.wall_time_s,
            "generator": self.generator.bit_generator.state,
        }
        checkpoints.save(self.folder / "checkpoints", self.update, parts)

    def _restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        with checkpoint.restoring():
            parallel.load_weights(self.world.model, checkpoint.load("world_model.safetensors", self.device))
            self.world.load_state(checkpoint.load("world_model.pt", self.device))
            states = checkpoint.load("torch.pt")  # one for each process that there was; a new one begins its own stream
            if parallel.rank() < len(states):
                rng = states[parallel.rank()]
                torch.set_rng_state(rng["cpu"])
                if self.device.type == "cuda" and rng["cuda"] is not None:
                    torch.cuda.set_rng_state(rng["cuda"], self.device)
            state = checkpoint.load("pretraining.json")
            self.generator.bit_generator.state, self.seconds = state["generator"], float(state["wall_time_s"])


def check_codes_are_used(learner: LearnerConfig, tokenizer_updates: int) -> None:
    """Raises UserError if the tokenizer, which begins as a plain autoencoder, ends before its codebooks are in use."""
    if learner.quantize_after and tokenizer_updates <= learner.quantize_after:
        raise UserError(
            f"the tokenizer uses codes after learner.quantize_after={learner.quantize_after} updates and has "
            f"{tokenizer_updates}: the transformer would learn from codebooks that were never used; give the tokenizer "
            "more, lower the key, or set start_from"
        )


def pretrain(settings: PretrainSettings) -> None:
    """Train; everything that processes share is let go when this returns, before they part."""
    with Pretraining(settings) as pretraining:
        if pretraining.logger is not None:
            print(pretraining.plan(), flush=True)
        pretraining.train()


def main(overrides: list[str]) -> None:
    overrides, dry = dry_run(overrides)
    settings = load_plain(PretrainSettings, "pretrain", overrides)
    check_keys(typed_keys(overrides), settings.kind)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.kind == "onestep":
        onestep = OneStepPretraining(settings)
        print(onestep.plan()) if dry else onestep.run()
        return
    if dry:
        print(Pretraining(settings, opened=False).plan())
        return
    with joined_processes(settings.device):
        pretrain(settings)

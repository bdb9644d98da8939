"""Pre-train the one-step predictor: `python -m mbrl.pretrain kind=onestep key=value ...`.

It learns from the clips that iVideoGPT learns from, is validated on the same held-out ones, and leaves a folder of the
same kind: logs and checkpoints, so the same command continues after any stop, and at the end the model, for
`world_model.kind=onestep world_model.onestep_pretrained=<out>/model` and for `make predict`. Its keys are the section
`onestep` of configs/pretrain.yaml; with `onestep.minutes` it can be given as long as another model had.
"""

import math
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mbrl.experiment import checkpoints
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.capacity import needs_of_onestep, refuse_too_large
from mbrl.experiment.logger import Logger
from mbrl.experiment.run import RunFinished, lock_folder, stream_seed
from mbrl.experiment.settings import UserError, pick_device
from mbrl.pretrain.folder import LOG_UPDATES, check_same, held_out_episodes, log_validation, note_start
from mbrl.pretrain.models import heads_of, note_held_out
from mbrl.pretrain.settings import OneStepTraining, PretrainSettings
from mbrl.rollout import to_float
from world_model.data import ClipDataset
from world_model.onestep import OneStep, OneStepWorld


class OneStepPretraining:
    """A pre-training, new or continued from the checkpoint in its folder.

    Raises UserError, DataError: the settings or the data do not fit.
    """

    def __init__(self, settings: PretrainSettings) -> None:
        s, config = settings, settings.onestep
        self.settings, self.config, self.folder, self.device = s, config, Path(s.out), pick_device(s.device)
        self.data, self.held_out = ClipDataset(s.data, "train", s.held_out_every), held_out_episodes(s)
        if s.episodes is not None:
            self.data.keep(s.episodes, np.random.default_rng(stream_seed(s.seed, "episodes")))
        self.length = config.frames + config.steps
        self.data.sample(1, self.length, np.random.default_rng(0))  # says now if no episode is long enough
        _, height, width = self.data.frame_shape
        if height != width or height % 8:
            raise UserError(f"{s.data} has frames {self.data.frame_shape}; kind=onestep halves a square three times")
        refuse_too_large(needs_of_onestep(config, height, "onestep."), s.device)
        torch.manual_seed(stream_seed(s.seed, "weights"))
        self.world = OneStepWorld(OneStep(config, self.data.action_dim, heads_of(s.rewards)), height, self.device)
        self.generator = np.random.default_rng(stream_seed(s.seed, "clips"))
        self.update, self.seconds, self.finished = 0, 0.0, False  # of the training before this start

    def run(self) -> None:
        """Train to the end. Raises RunFinished: there is nothing left to do; UserError: another training is here."""
        (self.folder / "videos").mkdir(parents=True, exist_ok=True)
        with lock_folder(self.folder):
            checkpoint = checkpoints.latest(self.folder / "checkpoints")
            if checkpoint:
                check_same(self.folder, self.settings)
                self._restore(checkpoint)
            if self.finished and done(self.config, self.update, self.seconds) >= 1:
                raise RunFinished(f"{self.folder} is finished: its model is in {self.folder / 'model'}")
            note_start(self.folder, self.settings)
            print(self.plan(), flush=True)
            with closing(Logger(self.folder, self.update or None, self.seconds, tables=False)) as logger:
                self.train(logger)

    def train(self, logger: Logger) -> None:
        s, config, world = self.settings, self.config, self.world
        with progress_bar(total=config.updates, initial=self.update, unit="update") as bar:
            while (progress := done(config, self.update, logger.wall_time_s)) < 1:
                clips = self.data.sample(config.batch_size, self.length, self.generator).map(self._on_device)
                metrics = world.update(clips._replace(frames=to_float(clips.frames)), rate(config, progress))
                self.update += 1
                bar.update()
                logger.record("world_model", metrics)
                if self.update % LOG_UPDATES == 0:
                    logger.flush(self.update)
                if self.update % s.validate_every_updates == 0:
                    log_validation(logger, self.update, world, self.held_out, s)
                if self.update % s.checkpoint_every_updates == 0:
                    self._save(logger)
        if self.update % s.validate_every_updates:
            log_validation(logger, self.update, world, self.held_out, s)
        world.save_pretrained(self.folder / "model")
        note_held_out(self.folder / "model", s.data, s.held_out_every)
        self._save(logger, finished=True)

    def _on_device(self, field: Tensor) -> Tensor:
        return field.to(self.device)

    def _save(self, logger: Logger, finished: bool = False) -> None:
        logger.flush(self.update)
        logger.sync()
        parts = {
            "world_model.safetensors": self.world.weights(),
            "world_model.pt": self.world.state(),
            "pretraining.json": {
                "finished": finished,
                "wall_time_s": logger.wall_time_s,
                "generator": self.generator.bit_generator.state,
            },
        }
        checkpoints.save(self.folder / "checkpoints", self.update, parts)

    def _restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        with checkpoint.restoring():
            self.world.load_weights(checkpoint.load("world_model.safetensors", self.device))
            self.world.load_state(checkpoint.load("world_model.pt", self.device))
            state = checkpoint.load("pretraining.json")
            self.generator.bit_generator.state = state["generator"]
            self.update, self.seconds, self.finished = checkpoint.frame, state["wall_time_s"], state["finished"]

    def plan(self) -> str:
        """What training will do, in two lines."""
        s, config, data = self.settings, self.config, self.data
        parameters = sum(parameter.numel() for parameter in self.world.model.parameters())
        limit = f", or {config.minutes:g} minutes" if config.minutes else ""
        return (
            f"pre-training a one-step predictor of {parameters / 1e6:.1f} M parameters on {data.num_episodes:,} "
            f"episodes ({data.num_frames:,} frames) of {s.data}: {config.updates:,} updates ({config.batch_size} clips)"
            f"{limit}; {self.update:,} are done in {self.seconds / 60:.0f} minutes\n"
            f"into {self.folder}: checkpoints every {s.checkpoint_every_updates:,} updates, at the end the model"
        )


def done(config: OneStepTraining, update: int, seconds: float) -> float:
    """The share of the training that is behind, in updates or in time; whichever is further."""
    return max(update / config.updates, seconds / (60 * config.minutes) if config.minutes else 0.0)


def rate(config: OneStepTraining, progress: float) -> float:
    """What share of the learning rate the next update has: half a cosine from 1 to `final_lr`."""
    return config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2

"""Video prediction: `make predict MODEL=<folder> DATA=<folder>`, `python -m mbrl.predict key=value ...`.

The paper's protocol (iVideoGPT, arXiv 2405.15223, Table 1): each test clip is predicted many times from its first
frames; of each frame metric the best prediction of a clip counts, FVD compares all predictions with all clips. A model
with action weights predicts under the actions that were taken, one without them by itself; with `goal=true` the first
frame given is the clip's last. Both kinds of model are asked through one contract, `world_model/api.py`.
Results go to runs/predictions/<name>/: metrics.json, metrics.md and images.

Letters: B clips of a batch, S predictions of each, K frames given, H predicted, n tokens a frame.
"""

import dataclasses
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from mbrl.build import find_pretrained
from mbrl.experiment.bars import progress_bar
from mbrl.experiment.capacity import Need, refuse_too_large
from mbrl.experiment.planned import dry_run
from mbrl.experiment.provenance import provenance
from mbrl.experiment.run import stream_seed
from mbrl.experiment.settings import (
    Device,
    Folder,
    Name,
    Positive,
    Range,
    Seed,
    Threads,
    UserError,
    load_plain,
    pick_device,
    to_dict,
)
from mbrl.experiment.video import Images, comparison, error_images, write_film, write_gif, write_mp4
from mbrl.predict.models import load_predictor
from mbrl.predict.scores import TABLE, Predicted, Scores, table
from mbrl.pretrain.models import held_out_every
from mbrl.rollout import to_float, to_uint8
from world_model.api import Clips, StartOptions, imagine
from world_model.data import ClipDataset, DataError, goal_first
from world_model.metrics.fvd import I3D, LEAST_FRAMES
from world_model.metrics.perceptual import LPIPS

FPS = 4.0


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    model: Folder
    data: Folder
    part: Literal["held_out", "train", "all"]
    held_out_every: Positive | None  # None takes over what the model was trained with
    name: Name
    clips: Positive
    samples: Positive
    horizon: Positive
    context_length: Positive | None
    windows: Literal["random", "first"]
    batch_size: Positive
    temperature: Annotated[float, Range(0.0)]
    top_k: Positive
    seed: Seed
    goal: bool
    with_context: bool
    decouple: bool
    perceptual_weights: Folder
    i3d_weights: Folder
    shown: Positive
    video: Literal["gif", "mp4"]
    device: Device
    threads: Threads
    precision: Literal["auto", "fp32", "bf16"]


class Prediction:
    def __init__(self, settings: PredictSettings) -> None:
        s = self.settings = settings
        self.device = pick_device(s.device)
        folder = find_pretrained(s.model, "model")
        self.model = load_predictor(folder, s.context_length, s.precision, self.device)
        # A model without tokens draws nothing: all its predictions of a clip are one.
        self.samples = s.samples if self.model.tokens else 1
        self.held_out_every = held_out_every(folder, s.data, s.held_out_every)
        data = ClipDataset(s.data, s.part, self.held_out_every)
        self._check(data)
        self.missing: dict[str, str] = {}  # metric -> why there is none
        if "reward" not in self.model.heads:
            self.missing |= dict.fromkeys(("reward_mae", "reward_correlation"), "the model has no reward head")
        if self.model.tokens is None:
            self.missing |= dict.fromkeys(("copied_tokens", "copied_tokens_true"), "the model has no tokens")
        elif s.horizon < 2:
            self.missing |= dict.fromkeys(("copied_tokens", "copied_tokens_true"), "horizon=1 has no frame before")
        self.clips = cut(data, self.known, s)
        self.lpips, self.i3d = self._judges()
        self.predicted_frames, self.seconds = 0, 0.0  # of all predictions so far

    def plan(self) -> str:
        """What will be predicted, in one line."""
        s = self.settings
        clips = f"{len(self.clips.frames)} clips of {s.data} ({s.part})"
        return f"{s.model} predicts {s.horizon} frames of {clips} after {self.known}, {self.samples} times each"

    def _check(self, data: ClipDataset) -> None:
        """Raises UserError if the model does not go with the data or with another key."""
        s, model = self.settings, self.model
        if model.action_dim and model.action_dim != data.action_dim:
            raise UserError(f"{s.model} wants {model.action_dim} action numbers, {s.data} has {data.action_dim}")
        if data.frame_shape != (3, model.resolution, model.resolution):
            wanted = (3, model.resolution, model.resolution)
            raise UserError(f"{s.data} has frames {data.frame_shape}, {s.model} wants {wanted}")
        if s.goal and self.known < 2:
            raise UserError("goal=true needs a model with two context frames: the goal and the first frame")
        for key in ("with_context", "decouple"):
            if getattr(s, key) and model.tokens is None:
                raise UserError(f"{key}=true needs a tokenizer, which {s.model} does not have")

    def _judges(self) -> tuple[LPIPS | None, I3D | None]:
        """The networks that some metrics need, where their weights are at hand."""
        s, lpips, i3d = self.settings, None, None
        if s.perceptual_weights != "none":
            lpips = LPIPS.from_folder(s.perceptual_weights).to(self.device)
        else:
            self.missing["lpips"] = "no weights (perceptual_weights=none)"
        if s.i3d_weights == "none":
            self.missing["fvd"] = "no weights (i3d_weights=none)"
        elif self.known + s.horizon < LEAST_FRAMES:
            self.missing["fvd"] = f"needs clips of {LEAST_FRAMES} frames or more"
        else:
            i3d = I3D(s.i3d_weights, self.device)
        return lpips, i3d

    @property
    def known(self) -> int:
        """K"""
        return self.model.context_length

    @torch.no_grad()
    def run(self) -> tuple[dict[str, float | None], dict[str, Images]]:
        """All metrics, None where one is missing, and the images of the first clips by their names."""
        s, total = self.settings, len(self.clips.frames)
        scores, images = Scores(self.known, self.model.tokens, s.with_context, self.lpips, self.i3d), []
        with progress_bar(total=total * self.samples, unit="prediction") as bar:
            size = max(1, s.batch_size // self.samples)
            for first in range(0, total, size):
                rows = slice(first, first + size)
                batch = self.clips.map(partial(_rows, rows=rows, device=self.device))
                true = to_float(batch.frames)
                scores.start(true)
                for drawn in range(0, self.samples, s.batch_size):
                    count = min(s.batch_size, self.samples - drawn)
                    seed = stream_seed(s.seed, "prediction", f"{first} {drawn}")
                    started = time.perf_counter()
                    predicted = self.predict(true, batch.actions, count, seed)
                    if self.device.type == "cuda":
                        torch.cuda.synchronize(self.device)
                    self.seconds += time.perf_counter() - started
                    self.predicted_frames += len(true) * count * s.horizon
                    scores.add(true, batch.rewards, predicted)
                    bar.update(len(true) * count)
                    if not drawn and first < s.shown:
                        images.append(self._show(true, predicted))
                scores.finish()
        shown = {name: np.concatenate([part[name] for part in images])[: s.shown] for name in images[0]}
        found = scores.metrics()
        # JSON has no nan: a correlation with what never changes is missing, too.
        if np.isnan(found["reward_correlation"]):
            self.missing.setdefault("reward_correlation", "rewards never change")
        return {name: None if name in self.missing else found[name] for name in TABLE}, shown

    def predict(self, true: Tensor, actions: Tensor, count: int, seed: int) -> Predicted:
        """Predict clips (B, K + H, 3, h, w) `count` times, all at once, from their first K frames and all actions."""
        s, known = self.settings, self.known
        context, actions = (
            field.repeat_interleave(count, 0) for field in (true[:, :known], actions[:, known - 1 : -1])
        )
        generator = torch.Generator(self.device).manual_seed(seed)
        options = StartOptions(temperature=s.temperature, top_k=s.top_k, generator=generator)
        with self.model.autocast():
            dream = imagine(self.model.world, context, actions, s.horizon, **options)
        rewards = dream.actions.new_zeros(dream.actions.shape[:2]) if dream.rewards is None else dream.rewards
        frames, rewards = (field.float().unflatten(0, (len(true), count)) for field in (dream.frames, rewards))
        tokens = None if dream.tokens is None else dream.tokens.unflatten(0, (len(true), count))
        return Predicted(frames, rewards, tokens)

    def _show(self, true: Tensor, predicted: Predicted) -> dict[str, Images]:
        """The first prediction of each clip beside the truth, uint8 (B, H, 3, h, w)."""
        future = to_uint8(true[:, self.known :]).cpu().numpy()
        guess = to_uint8(predicted.frames[:, 0]).cpu().numpy()
        shown = {"true": future, "predicted": guess, "error": error_images(future, guess)}
        if self.settings.decouple and predicted.tokens is not None and (model := self.model.tokens):
            ids = predicted.tokens[:, 0] - model.layout.first_dynamics_id
            shown["without context"] = to_uint8(model.tokenizer.decode_alone(ids)).cpu().numpy()
        return shown


def _rows(field: Tensor, rows: slice, device: torch.device) -> Tensor:
    return field[rows].to(device)


def cut(data: ClipDataset, known: int, settings: PredictSettings) -> Clips:
    """Windows of K + H frames, spread evenly over the episodes that are long enough.

    `clips` of them; with windows=first no more than there are such episodes. Raises DataError: there is none.
    """
    s, length = settings, known + settings.horizon
    fitting = np.flatnonzero(data.lengths >= length)
    if not len(fitting):
        longest = data.lengths.max()
        raise DataError(f"no episode of {s.data} has {known} + horizon={s.horizon} frames (longest: {longest})")
    count = s.clips if s.windows == "random" else min(s.clips, len(fitting))
    clip = length * math.prod(data.frame_shape)
    at_once = min(s.batch_size, count * s.samples)
    held = Need(f"clips={s.clips}, horizon={s.horizon}", count * clip)
    predicted = Need(f"batch_size={s.batch_size}, horizon={s.horizon}", 4 * at_once * clip, "device")
    refuse_too_large([held, predicted], s.device)
    episodes = fitting[np.linspace(0, len(fitting) - 1, count).round().astype(int)]
    starts = np.zeros(count, int)
    if s.windows == "random":
        starts = np.random.default_rng(stream_seed(s.seed, "windows")).integers(data.lengths[episodes] - length + 1)
    clips = data.windows(episodes, starts, length)
    return clips.map(lambda field: goal_first(field)[0]) if s.goal else clips


def make_folder(settings: PredictSettings) -> Path:
    """Where the results go, before there are any."""
    s = settings
    parts = [part for part in Path(s.model).resolve().parts if part not in ("/", "model", "world_model")]
    name = "-".join([*parts[-1:], Path(s.data).resolve().name]) if s.name == "auto" else s.name
    folder = Path("runs/predictions") / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(folder: Path, prediction: Prediction, metrics: dict[str, float | None], images: dict[str, Images]) -> None:
    """metrics.json, metrics.md and the images."""
    s, model = prediction.settings, prediction.model
    about = {
        "held_out_every": prediction.held_out_every,
        "clips": len(prediction.clips.frames),
        "samples": prediction.samples,
        "frames_given": prediction.known,
        "frames_predicted": s.horizon,
        "conditioned_on_actions": model.action_dim > 0,
        "frames_per_second": prediction.predicted_frames / prediction.seconds,
        "metrics": metrics,
        "missing": prediction.missing,
        "settings": to_dict(s),
        "provenance": provenance(),
    }
    (folder / "metrics.json").write_text(json.dumps(about, indent=1) + "\n")
    heading = (
        f"{s.model} on {s.data} ({s.part}): {about['clips']} clips, {prediction.samples} predictions of each, "
        f"{prediction.known} frames given, {s.horizon} predicted, "
        f"{'under the true actions' if model.action_dim else 'without actions'}{', goal given' if s.goal else ''}\n\n"
    )
    speed = f"\n{about['frames_per_second']:.4g} frames predicted a second, up to {s.batch_size} side by side\n"
    (folder / "metrics.md").write_text(heading + table(metrics, prediction.missing) + speed)
    write_film(folder / "predictions.png", images, scale=2)
    moving = comparison(images)
    if s.video == "mp4":
        write_mp4(folder / "predictions.mp4", moving, FPS)
    else:
        write_gif(folder / "predictions.gif", moving, FPS)


def main(overrides: list[str]) -> None:
    overrides, dry = dry_run(overrides)
    settings = load_plain(PredictSettings, "predict", overrides)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    prediction = Prediction(settings)
    if dry:
        print(prediction.plan())
        return
    folder = make_folder(settings)
    metrics, images = prediction.run()
    write(folder, prediction, metrics, images)
    print(
        (folder / "metrics.md").read_text()
        + f"\n{folder}: metrics.json, metrics.md, predictions.png and .{settings.video}"
    )

"""Studies of a world model, each a table: `make study NAME=<study>`, `python -m mbrl.study key=value ...`.

    decoupling   future frames decoded with their context, with another clip's, and without any
    distances    of images and of code vectors, against the decisions to a goal (mbrl/study/distances.py)
    efficiency   compressive tokens against tokens of single frames: memory, time, quality (mbrl/study/efficiency.py)
    fewshot      predictions of held-out clips, the tokenizer adapted to N trajectories, the transformer frozen
    ranking      of a policy's candidates, by a run's model, its critic and the truth (mbrl/study/ranking.py)
    scaling      loss on held-out clips against parameters of the transformer, on the tokens of one tokenizer

After the studies of iVideoGPT (arXiv 2405.15223). The table goes to runs/studies/<study>/, study.md and study.json; the
models of fewshot and scaling lie beside it, and the same command again goes on where it was cut off.

Letters: B clips, K frames given, H predicted, n tokens a frame.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mbrl.build import find_pretrained
from mbrl.experiment.planned import dry_run
from mbrl.experiment.provenance import provenance
from mbrl.experiment.run import RunFinished
from mbrl.experiment.settings import Count, Folder, Name, Positive, Range, UserError, load_plain, pick_device, to_dict
from mbrl.experiment.video import Images, write_film
from mbrl.predict.predict import Prediction, PredictSettings, cut
from mbrl.pretrain.models import held_out_every
from mbrl.pretrain.pretrain import Pretraining, PretrainSettings
from mbrl.rollout import to_float, to_uint8
from mbrl.study import distances, efficiency, ranking
from world_model import IVideoGPT
from world_model.api import Clips
from world_model.data import ClipDataset
from world_model.ivideogpt.weights import read_heads
from world_model.metrics import correlation, psnr

TOKENIZED = 16  # clips at a time
PREDICTED = ("psnr", "mean_psnr", "copy_psnr", "ssim", "moving_error_ratio")  # of mbrl/predict/scores.py
Row = dict[str, Any]
# What these look at in place of held-out clips.
WITHOUT_DATA = {"distances": "the expert's episodes, seen by {model}", "ranking": "candidates of the policy of {run}"}


@dataclasses.dataclass(frozen=True)
class Overrides:
    decoupling: tuple[str, ...]
    distances: tuple[str, ...]
    efficiency: tuple[str, ...]
    fewshot: tuple[str, ...]
    ranking: tuple[str, ...]
    scaling: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class StudySettings:
    study: Literal["decoupling", "distances", "efficiency", "fewshot", "ranking", "scaling"]
    out: Folder
    clips: Positive
    samples: Positive
    trajectories: Annotated[tuple[Count, ...], Range(1)]
    transformers: Annotated[tuple[Name, ...], Range(1)]
    repeats: Positive
    run: Folder
    task_names: Annotated[tuple[str, ...], Range(1)]
    episodes_per_task: Positive
    overrides: Overrides

    @property
    def folder(self) -> Path:
        return Path("runs/studies") / self.study if self.out == "auto" else Path(self.out)


class Study:
    """What all studies share: settings, held-out clips, and pre-trainings in folders of their own."""

    def __init__(self, overrides: Sequence[str]) -> None:
        own = {field.name for field in dataclasses.fields(StudySettings)}
        of_study = [override for override in overrides if override.split("=")[0].split(".")[0] in own]
        self.settings = s = load_plain(StudySettings, "study", of_study)
        of_pretraining = [override for override in overrides if override not in of_study]
        self.overrides = [*getattr(s.overrides, s.study), *of_pretraining]
        self.pretrain = self.pretrain_settings()
        if (start := self.pretrain.start_from) != "none":
            held_out_every(find_pretrained(start, "start_from"), self.pretrain.data, self.pretrain.held_out_every)
        self.folder = s.folder

    def pretrain_settings(self, *more: str) -> PretrainSettings:
        last = {override.split("=")[0]: override for override in [*self.overrides, *more]}  # later overrides win
        return load_plain(PretrainSettings, "pretrain", list(last.values()))

    def predict_settings(self, model: Path | str) -> PredictSettings:
        """Predict held-out clips as the pre-training would."""
        s, p = self.settings, self.pretrain
        values = dict(
            model=model,
            data=p.data,
            held_out_every=p.held_out_every,
            clips=s.clips,
            samples=s.samples,
            horizon=p.horizon,
            context_length="null" if p.context_length is None else p.context_length,
            goal=p.goal,
            seed=p.seed,
            device=p.device,
            threads=p.threads,
            precision=p.learner.precision,
        )
        return load_plain(PredictSettings, "predict", [f"{key}={value}" for key, value in values.items()])

    def held_out(self, model: IVideoGPT) -> Clips:
        """Clips of K + H frames that nothing was trained on."""
        data = ClipDataset(self.pretrain.data, "held_out", self.pretrain.held_out_every)
        return cut(data, model.layout.context_length, self.predict_settings("none"))

    def trained(self, name: str, *more: str) -> Path:
        """The model of a pre-training, which is taken up where it was cut off and not made again once finished."""
        settings = self.pretrain_settings(*more, f"out={self.folder / name}")
        try:
            with Pretraining(settings) as pretraining:
                pretraining.train()
        except RunFinished:
            pass
        return Path(settings.out) / "model"

    def load(self, model: Path | str) -> IVideoGPT:
        folder = find_pretrained(str(model), "start_from")
        heads = read_heads(folder)
        loaded = IVideoGPT.from_pretrained(folder, heads.action_dim, self.pretrain.context_length)
        return loaded.to(pick_device(self.pretrain.device)).eval()

    def film(self, name: str, images: Mapping[str, Images]) -> None:
        write_film(self.folder / f"{name}.png", images, scale=2)


def fewshot(study: Study) -> list[Row]:
    """The tokenizer is adapted to N trajectories, the transformer stays (N = 0: the model as it is)."""
    rows = []
    for count in study.settings.trajectories:
        model: Path | str = study.pretrain.start_from
        if count:
            model = study.trained(f"{count}", f"episodes={count}")
        metrics, images = Prediction(study.predict_settings(model)).run()
        study.film(f"{count}-trajectories", images)
        updates = study.pretrain.tokenizer_updates if count else 0
        rows.append({"trajectories": count, "updates": updates} | {name: metrics[name] for name in PREDICTED})
    return rows


def scaling(study: Study) -> list[Row]:
    """Transformers of several sizes learn equally long from equal tokens."""
    rows = []
    for name in study.settings.transformers:
        model = study.load(study.trained(name, f"transformer={name}"))
        loss, accuracy = held_out_loss(model, study.held_out(model))
        sizes = model.transformer.config
        rows.append(
            {
                "transformer": name,
                "layers": sizes.num_hidden_layers,
                "width": sizes.hidden_size,
                "parameters": sum(parameter.numel() for parameter in model.transformer.parameters()),
                "of its layers": sum(parameter.numel() for parameter in model.transformer.blocks.parameters()),
                "updates": study.pretrain.transformer_updates,
                "loss in nats a token": loss,
                "token accuracy": accuracy,
            }
        )
    return rows


@torch.no_grad()
def held_out_loss(model: IVideoGPT, clips: Clips) -> tuple[float, float]:
    """Cross-entropy in nats a token, and the share of tokens that were the argmax, slots counted."""
    losses, accuracies = [], []
    for first in range(0, len(clips.frames), TOKENIZED):
        frames, actions = (field[first : first + TOKENIZED].to(model.device) for field in clips[:2])
        tokens, labels = model.tokens(to_float(frames))
        out = model.predict(tokens, labels, actions)
        targets = tokens[:, model.layout.prefix + 1 :]
        losses.append(out.ce_loss * len(frames))
        accuracies.append((out.logits[:, :-1].argmax(-1) == targets).float().mean() * len(frames))
    count = len(clips.frames)
    return float(sum(losses)) / count, float(sum(accuracies)) / count


@torch.no_grad()
def decoupling(study: Study) -> list[Row]:
    """The same dynamics tokens, decoded in three ways; nothing is trained."""
    model = study.load(study.pretrain.start_from)
    true = to_float(study.held_out(model).frames.to(model.device))
    if min(len(true), study.pretrain.horizon) < 2:
        raise UserError("decoupling needs clips=2 and horizon=2 or more: the context of another clip, and motion")
    tokenizer, known = model.tokenizer, model.layout.context_length
    tokens = torch.cat([model.tokens(part)[0] for part in true.split(TOKENIZED)])
    context_ids, dynamics_ids = model.layout.split(tokens)
    codes = tokenizer.dynamics_quantize.embedding(dynamics_ids)

    def decoded(ids: Tensor, last: Tensor) -> Tensor:
        parts = []
        for ids_, codes_, last_ in zip(*(field.split(TOKENIZED) for field in (ids, codes, last)), strict=True):
            _, memory = tokenizer.decode_context(tokenizer.quantize.embedding(ids_))
            parts.append(tokenizer.decode_future(codes_, memory, last_).clamp(0, 1))
        return torch.cat(parts)

    last, future = true[:, known - 1], true[:, known:]
    shown = {
        "its own context": decoded(context_ids, last),
        "another clip's context": decoded(context_ids.roll(1, 0), last.roll(1, 0)),
        "no context": torch.cat([tokenizer.decode_alone(part).clamp(0, 1) for part in dynamics_ids.split(TOKENIZED)]),
    }
    images = {"true": future} | shown
    study.film("frames", {name: to_uint8(frames[:4]).cpu().numpy() for name, frames in images.items()})
    return [
        {
            "decoded with": name,
            "psnr": float(psnr(frames, future).mean()),
            "motion correlation": correlation(motion(frames), motion(future)),
        }
        for name, frames in (shown | {"nothing: the last frame given": last[:, None].expand_as(future)}).items()
    ]


def motion(frames: Tensor) -> Tensor:
    """How much each pixel changes from frame to frame: (B, H, 3, height, width) -> (B, H - 1, height, width)."""
    return (frames[:, 1:] - frames[:, :-1]).abs().mean(2)


def efficient(study: Study) -> list[Row]:
    return efficiency.measure(study.pretrain, study.held_out, study.settings.repeats)


def distant(study: Study) -> list[Row]:
    s, p = study.settings, study.pretrain
    model = find_pretrained(p.start_from, "start_from")
    return distances.measure(model, s.task_names, s.episodes_per_task, p.seed, pick_device(p.device))


def ranked(study: Study) -> list[Row]:
    s, p = study.settings, study.pretrain
    if s.run == "none":
        raise UserError("run=none: name the folder of a run with a world model, such as run=runs/coffee-push/mbpo/1")
    return ranking.measure(s.run, s.episodes_per_task, p.seed, pick_device(p.device))


STUDIES: dict[str, Callable[[Study], list[Row]]] = {
    "decoupling": decoupling,
    "distances": distant,
    "efficiency": efficient,
    "fewshot": fewshot,
    "ranking": ranked,
    "scaling": scaling,
}


def plan(study: Study) -> str:
    """What a study will do, in one line."""
    s, p = study.settings, study.pretrain
    what = {
        "decoupling": f"{p.start_from} decodes {s.clips} held-out clips in three ways; nothing is trained",
        "distances": f"{s.episodes_per_task} episodes of the expert on each of {len(s.task_names)} tasks, "
        f"seen by {p.start_from}; nothing is trained",
        "efficiency": f"three tokenizers learn for {p.tokenizer_updates:,} updates each, then {s.repeats} timed "
        f"training steps and rollouts on each; {s.clips} held-out clips",
        "fewshot": f"the tokenizer of {p.start_from} learns for {p.tokenizer_updates:,} updates from "
        f"{', '.join(map(str, s.trajectories))} trajectories; then {s.samples} predictions "
        f"of {s.clips} held-out clips",
        "ranking": f"candidates of the policy of {s.run} at moments of {s.episodes_per_task} episodes, each played in "
        "the simulator; nothing is trained",
        "scaling": f"transformers {', '.join(s.transformers)} learn for {p.transformer_updates:,} updates each from "
        f"tokens of {p.start_from}; loss on {s.clips} held-out clips",
    }
    data = "" if s.study in WITHOUT_DATA else f" on {p.data}"
    return f"{s.study}{data}: {what[s.study]}. Into {study.folder}; what is there already is not trained again"


def table(rows: Sequence[Row]) -> str:
    """As Markdown; what has no value is a dash."""

    def written(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([written(value) for value in row.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(overrides: list[str]) -> None:
    overrides, dry = dry_run(overrides)
    study = Study(overrides)
    s, p = study.settings, study.pretrain
    if p.threads:
        torch.set_num_threads(p.threads)
    print(plan(study), flush=True)
    if dry:
        return
    study.folder.mkdir(parents=True, exist_ok=True)
    rows = STUDIES[s.study](study)
    rows = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # JSON has no nan
    about = {"rows": rows, "settings": to_dict(s), "pretrain": to_dict(p), "provenance": provenance()}
    (study.folder / "study.json").write_text(json.dumps(about, indent=1) + "\n")
    seen = f"{s.study} on {p.data}: {s.clips} held-out clips, {p.horizon} frames predicted"
    if s.study in WITHOUT_DATA:
        seen = f"{s.study}: " + WITHOUT_DATA[s.study].format(model=p.start_from, run=s.run)
    heading = f"{seen}, seed {p.seed}\n\n"
    (study.folder / "study.md").write_text(heading + table(rows))
    print(f"{heading}{table(rows)}\n{study.folder}: study.md, study.json")

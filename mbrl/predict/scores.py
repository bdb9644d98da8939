"""What predictions are worth: every metric of `make predict`, added up batch by batch.

    scores = Scores(known, model, with_context, lpips, i3d)
    for clips in batches:
        scores.start(clips)
        for some in parts_of_the_samples: scores.add(clips, rewards, some)
        scores.finish()
    scores.metrics()

Letters: B clips of a batch, S predictions of each, K frames given, H predicted, n tokens a frame.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from world_model import IVideoGPT
from world_model.metrics import copied_share, correlation, moving_errors, psnr, ssim
from world_model.metrics.frames import Errors
from world_model.metrics.fvd import I3D, Statistics, frechet_distance
from world_model.metrics.perceptual import LPIPS

IMAGES = 64  # at a time through VGG
# What is written of each number: name, whether more is better (None: neither), meaning.
TABLE: dict[str, tuple[str, bool | None]] = {
    "psnr": ("PSNR in dB, best prediction of each clip", True),
    "ssim": ("SSIM, best prediction of each clip", True),
    "lpips": ("LPIPS (VGG), best prediction of each clip", False),
    "fvd": ("FVD, all predictions against all clips", False),
    "mse": ("squared error, best prediction of each clip", False),
    "mean_psnr": ("PSNR in dB, mean of all predictions", True),
    "copy_psnr": ("PSNR in dB of copying the last frame given", None),
    "moving_error_ratio": ("squared error on pixels that move against copying; below 1 is better than that", False),
    "reward_mae": ("absolute error of rewards, mean of all predictions", False),
    "reward_correlation": ("correlation of predicted with true rewards", True),
    "copied_tokens": ("share of tokens equal to those of the frame before", None),
    "copied_tokens_true": ("the same of the true frames", None),
}


class Predicted(NamedTuple):
    """`S` predictions of each of `B` clips."""

    frames: Tensor  # (B, S, H, 3, h, w)
    rewards: Tensor  # (B, S, H)
    tokens: Tensor | None  # (B, S, H, n), ids of the whole vocabulary; of a model that has tokens


class Scores:
    """Over predicted frames; `with_context` over whole clips, the given frames as the tokenizer shows them.

    Args:
        known: K.
        model: the one that predicts, if it has tokens; without it nothing is said of tokens.
    """

    def __init__(
        self, known: int, model: IVideoGPT | None, with_context: bool, lpips: LPIPS | None, i3d: I3D | None
    ) -> None:
        self.known, self.model, self.with_context, self.lpips, self.i3d = known, model, with_context, lpips, i3d
        self.clips = self.predictions = 0
        self.best: dict[str, list[Tensor]] = {}  # of each batch of clips: (B,)
        self.samples: dict[str, list[Tensor]] = {}  # of the batch at hand: parts of (B, S)
        self.sums: dict[str, Tensor] = {}
        self.rewards: list[tuple[Tensor, Tensor]] = []
        self.real, self.predicted = Statistics(), Statistics()

    def start(self, true: Tensor) -> None:
        """A new batch of clips (B, K + H, 3, h, w)."""
        known = self.known
        self.clips += len(true)
        self.samples = {}
        last = true[:, known - 1 : known].expand_as(true[:, known:])
        self._sum("copy_psnr", psnr(last, true[:, known:]).mean(1).sum())
        self.given = true[:, :known]  # what stands before the predicted frames where whole clips are judged
        if self.model:
            tokens, layout = self.model.tokens(true)[0], self.model.layout
            if true.shape[1] > known + 1:
                self._sum("copied_tokens_true", copied_share(layout.split(tokens)[1]) * len(true))
            if self.with_context:
                self.given = self.model.tokenizer.detokenize(tokens[:, : layout.prefix]).clamp(0, 1)
        if self.i3d:
            self.real.add(self.i3d(true))

    def add(self, true: Tensor, rewards: Tensor, predicted: Predicted) -> None:
        """S predictions of each clip of the batch; rewards (B, K + H)."""
        known, (clips, count) = self.known, predicted.frames.shape[:2]
        self.predictions += clips * count
        given = self.given[:, None].expand(-1, count, -1, -1, -1, -1)
        whole = torch.cat([given, predicted.frames], dim=2).flatten(0, 1)  # (B S, K + H, 3, h, w)
        target = true.repeat_interleave(count, 0)
        judged, wanted = (whole, target) if self.with_context else (whole[:, known:], target[:, known:])
        scores = {
            "psnr": psnr(judged, wanted),
            "ssim": ssim(judged, wanted),
            "mse": (judged - wanted).square().mean((2, 3, 4)),
        }
        if self.lpips:
            pairs = zip(judged.flatten(0, 1).split(IMAGES), wanted.flatten(0, 1).split(IMAGES), strict=True)
            scores["lpips"] = torch.cat([self.lpips(a, b) for a, b in pairs]).view(judged.shape[:2])
        for name, values in scores.items():
            self.samples.setdefault(name, []).append(values.mean(1).view(clips, count))
        if self.i3d:
            self.predicted.add(self.i3d(whole))
        errors = moving_errors(whole[:, known:], target[:, known:], target[:, known - 1])
        self._sum("moving", errors.moving)
        self._sum("copying", errors.copying)
        if predicted.tokens is not None and predicted.tokens.shape[2] > 1:
            self._sum("copied_tokens", copied_share(predicted.tokens.flatten(0, 1)) * clips * count)
        earned = rewards[:, None, known - 1 : -1].expand_as(predicted.rewards)
        self.rewards.append((predicted.rewards.cpu(), earned.cpu()))

    def finish(self) -> None:
        """The batch has all its predictions: the best of each clip counts."""
        for name, parts in self.samples.items():
            values = torch.cat(parts, 1)  # (B, S)
            self.best.setdefault(name, []).append(values.amax(1) if TABLE[name][1] else values.amin(1))
            if name == "psnr":
                self._sum("mean_psnr", values.mean(1).sum())

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0) + value.cpu().double()

    def metrics(self) -> dict[str, float]:
        """By the names of TABLE; those that could not be computed are not there, or nan."""
        found = {name: float(torch.cat(parts).mean()) for name, parts in self.best.items()}
        for name in ("copy_psnr", "mean_psnr", "copied_tokens_true"):
            if name in self.sums:
                found[name] = float(self.sums[name]) / self.clips
        if "copied_tokens" in self.sums:
            found["copied_tokens"] = float(self.sums["copied_tokens"]) / self.predictions
        found["moving_error_ratio"] = Errors(self.sums["moving"], self.sums["copying"]).ratio
        predicted, earned = (torch.cat([part.flatten() for part in parts]) for parts in zip(*self.rewards, strict=True))
        found["reward_mae"] = float((predicted - earned).abs().mean())
        found["reward_correlation"] = correlation(predicted, earned)
        if self.i3d:
            found["fvd"] = frechet_distance(self.real, self.predicted)
        return found


def table(metrics: dict[str, float | None], missing: dict[str, str]) -> str:
    """As Markdown."""
    rows = ["| metric | value | better | what |", "|---|---|---|---|"]
    for name, (meaning, up) in TABLE.items():
        value = metrics[name]
        cell = f"missing: {missing[name]}" if value is None else f"{value:.4g}"
        rows.append(f"| `{name}` | {cell} | {'' if up is None else 'more' if up else 'less'} | {meaning} |")
    return "\n".join(rows) + "\n"

"""FVD, the Frechet video distance (Unterthiner et al., arXiv 1812.01717), from weights that the user provides.

    statistics = {"real": Statistics(), "predicted": Statistics()}
    statistics["real"].add(i3d(clips))             # any number of batches
    frechet_distance(statistics["real"], statistics["predicted"])

Nothing is fetched. A folder must hold `i3d_torchscript.pt`, the TorchScript export of I3D trained on Kinetics-400 that
StyleGAN-V and iVideoGPT use. TorchScript is a program, unlike all other weights here: take it from somebody you trust.
Distances by other exports, or of other numbers of clips, do not compare.

Letters: B clips, T frames, D features of a clip (400).
"""

from pathlib import Path

import torch
from torch import Tensor

from world_model.api import WeightsError
from world_model.files import read_program, reading

FILE = "i3d_torchscript.pt"
CLIPS = 16  # at a time through I3D
LEAST_FRAMES = 9  # I3D pools time by eight and then looks at two places


class I3D:
    """Features of clips."""

    def __init__(self, folder: str | Path, device: torch.device) -> None:
        """Raises WeightsError: the file is missing or holds something else."""
        file = Path(folder) / FILE
        with reading(file, WeightsError, "it must be I3D as TorchScript, see world_model/metrics/fvd.py"):
            self.model = read_program(file, device)

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, H, W) in [0, 1] -> (B, D). Raises WeightsError where the file is some other model."""
        if clips.shape[1] < LEAST_FRAMES:
            raise ValueError(f"FVD needs clips of {LEAST_FRAMES} frames or more, these have {clips.shape[1]}")
        images = 255 * clips.float().transpose(1, 2)  # (B, 3, T, H, W)
        try:
            # The file itself scales to [-1, 1] and to 224 pixels a side, and stops before the softmax.
            options = dict(rescale=True, resize=True, return_features=True)
            return torch.cat([self.model(part, **options) for part in images.split(CLIPS)])
        except RuntimeError as error:
            raise WeightsError(f"{FILE} is not the I3D that is expected: {str(error).splitlines()[0]}") from None


class Statistics:
    """Mean and covariance of features, added up batch by batch in float64 on the CPU."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = torch.zeros(())
        self.squares = torch.zeros(())

    def add(self, features: Tensor) -> None:
        """(B, D)"""
        features = features.cpu().double()
        self.count += len(features)
        self.sum = self.sum + features.sum(0)
        self.squares = self.squares + features.T @ features

    @property
    def mean(self) -> Tensor:
        """(D,)"""
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D), divided by the count as in the common implementation of FVD."""
        return self.squares / self.count - torch.outer(self.mean, self.mean)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), the squared distance of two normal distributions.

    The trace of the root comes from eigenvalues: those of A B are those of A^(1/2) B A^(1/2), which is symmetric and
    has none below zero but for rounding. That also holds where there are fewer clips than features.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp_min(0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + traces - 2 * cross)

"""How good a dream is, against what really happened.

Letters: B clips, H horizon. Images are float in [0, 1]. Pixels that move are those that differ from the last context
frame by more than 10/255 in some channel; copying that frame is the predictor to beat on them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MOVED = 10 / 255
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # of the Gaussian window (Wang et al., 2004)
SSIM_CONSTANTS = (0.01**2, 0.03**2)


def moved(frames: Tensor, last: Tensor) -> Tensor:
    """1.0 where a pixel moves: (B, H, 3, height, width) against (B, 3, height, width) -> (B, H, 1, height, width)."""
    return ((frames - last[:, None]).abs().amax(2, keepdim=True) > MOVED).float()


class Errors(NamedTuple):
    """Sums, so that batches can be added up before dividing."""

    moving: Tensor  # squared error on pixels that move
    copying: Tensor  # the same, of copying the last context frame

    @property
    def ratio(self) -> float:
        """Below one: better than copying."""
        return float(self.moving / self.copying.clamp_min(1e-12))


def moving_errors(predicted: Tensor, true: Tensor, last: Tensor) -> Errors:
    """predicted and true (B, H, 3, height, width), last context frame (B, 3, height, width)."""
    moving = moved(true, last)
    return Errors(
        moving=((predicted - true).square() * moving).sum(),
        copying=((last[:, None] - true).square() * moving).sum(),
    )


def psnr(predicted: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, one for each image: (..., 3, height, width) -> (...)."""
    return -10 * (predicted - true).square().mean((-1, -2, -3)).clamp_min(1e-10).log10()


def ssim(predicted: Tensor, true: Tensor) -> Tensor:
    """Structural similarity, one for each image: (..., 3, height, width) in [0, 1] -> (...).

    Means over all places where the window fits whole, and over channels (Wang et al., 2004,
    DOI 10.1109/TIP.2003.819861). Images must be at least 11 pixels a side.
    """
    at = torch.arange(SSIM_WINDOW, device=true.device) - SSIM_WINDOW // 2
    bell = (-at.square() / (2 * SSIM_SIGMA**2)).exp()
    bell = bell / bell.sum()

    def blur(x: Tensor) -> Tensor:
        """(P, 1, height, width), separably."""
        return F.conv2d(F.conv2d(x, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))

    a, b = (images.float().reshape(-1, 1, *images.shape[-2:]) for images in (predicted, true))
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = SSIM_CONSTANTS
    similarity = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    similarity = similarity * (2 * covariance + c2) / (var_a + var_b + c2)
    return similarity.mean((1, 2, 3)).view(true.shape[:-2]).mean(-1)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over all elements; nan where one of them is constant."""
    a, b = a.flatten().cpu().double(), b.flatten().cpu().double()  # not every device has float64
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm())) if a.norm() * b.norm() > 0 else float("nan")


def copied_share(tokens: Tensor) -> Tensor:
    """Share of dynamics tokens equal to the one at the same place in the frame before: (B, H, n) -> ()."""
    return (tokens[:, 1:] == tokens[:, :-1]).float().mean()

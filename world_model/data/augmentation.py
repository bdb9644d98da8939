"""Random crops and colour jitter, the same for all frames of a clip: what does not move stays where and as it is.

    drawn = config.draw(len(clips), generator)
    clips = augment(clips, drawn)

A crop, then brightness, contrast, saturation and hue in an order drawn anew, as in the official code for iVideoGPT
(arXiv 2405.15223). Here crops are not rounded to whole pixels, contrast is about the mean of the clip, not of each
frame, and nothing is rounded to uint8 in between.

Letters: B clips, T frames, H W pixels.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True)
class AugmentationConfig:
    # least and most of the image's area that a crop keeps; [1, 1] crops nothing
    crop_scale: tuple[Annotated[float, "(0, 1]"], ...]
    crop_ratio: tuple[Annotated[float, "(0, inf)"], ...]  # least and most width / height of a crop
    brightness: Annotated[float, "[0, 1]"]  # the factor is drawn from 1 - brightness to 1 + brightness
    contrast: Annotated[float, "[0, 1]"]
    saturation: Annotated[float, "[0, 1]"]
    hue: Annotated[float, "[0, 0.5]"]  # the shift is drawn from -hue to hue, in turns of the colour circle

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio"):
            if len(limits := getattr(self, name)) != 2 or not 0 < limits[0] <= limits[1]:
                raise ValueError(f"{name}={list(limits)} must be two numbers above 0, the smaller one first")

    @property
    def nothing(self) -> bool:
        """Whether images stay as they are."""
        crops = {*self.crop_scale, *self.crop_ratio} != {1.0}
        return not (crops or self.brightness or self.contrast or self.saturation or self.hue)

    def draw(self, clips: int, generator: np.random.Generator) -> np.ndarray:
        """What happens to each clip, (B, 12).

        Four numbers each: left, top, width, height of the crop in parts of the image; brightness, contrast,
        saturation, hue; these by number, 0 to 3, in their order.
        """
        area = generator.uniform(self.crop_scale[0], self.crop_scale[1], clips)
        ratio = np.exp(generator.uniform(np.log(self.crop_ratio[0]), np.log(self.crop_ratio[1]), clips))
        size = np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], axis=1).clip(max=1)
        corner = generator.random((clips, 2)) * (1 - size)
        ranges = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        jitter = generator.uniform(-ranges, ranges, (clips, 4)) + (1, 1, 1, 0)
        order = generator.random((clips, 4)).argsort(axis=1)
        return np.concatenate([corner, size, jitter, order], axis=1)


def augment(clips: Tensor, drawn: np.ndarray) -> Tensor:
    """Clips float (B, T, 3, H, W) in [0, 1] and what was drawn for them (B, 12) -> changed clips, likewise."""
    boxes, jitter, order = np.split(drawn, 3, axis=1)
    clips = _crop(clips, torch.from_numpy(boxes).to(clips))
    for place in range(4):
        for number, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            rows = np.flatnonzero(order[:, place] == number)
            if len(rows):
                amount = torch.from_numpy(jitter[rows, number]).to(clips)[:, None, None, None, None]
                chosen = torch.from_numpy(rows).to(clips.device)
                clips[chosen] = change(clips[chosen], amount)
    return clips


def _crop(clips: Tensor, boxes: Tensor) -> Tensor:
    """Each clip's box (left, top, width, height), resized to the whole image."""
    left, top, width, height = boxes.T
    zero = torch.zeros_like(left)
    # From coordinates of the result to those of the image, both from -1 to 1.
    across = torch.stack([width, zero, 2 * left + width - 1], dim=1)
    down = torch.stack([zero, height, 2 * top + height - 1], dim=1)
    frames = clips.flatten(1, 2)  # (B, T 3, H, W): frames as channels, for all of them are sampled at the same places
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, padding_mode="border", align_corners=False).view_as(clips)


def _grey(clips: Tensor) -> Tensor:
    return (clips * clips.new_tensor(GREY)[:, None, None]).sum(2, keepdim=True)  # (B, T, 1, H, W)


def _mix(clips: Tensor, other: Tensor | float, amount: Tensor) -> Tensor:
    return (amount * clips + (1 - amount) * other).clamp(0, 1)


def _brightness(clips: Tensor, amount: Tensor) -> Tensor:
    return _mix(clips, 0.0, amount)


def _contrast(clips: Tensor, amount: Tensor) -> Tensor:
    return _mix(clips, _grey(clips).mean((1, 2, 3, 4), keepdim=True), amount)


def _saturation(clips: Tensor, amount: Tensor) -> Tensor:
    return _mix(clips, _grey(clips), amount)


def _hue(clips: Tensor, turns: Tensor) -> Tensor:
    """In HSV: value and chroma stay, the hue, in sixths of a turn, is shifted."""
    red, green, blue = clips.split(1, dim=2)
    value = clips.amax(2, keepdim=True)
    chroma = value - clips.amin(2, keepdim=True)
    scale = chroma.clamp_min(1e-8)
    hue = torch.where(value == green, (blue - red) / scale + 2, (red - green) / scale + 4)
    hue = torch.where(value == red, (green - blue) / scale, hue) + 6 * turns

    def channel(offset: int) -> Tensor:
        place = (offset + hue) % 6
        return value - chroma * torch.minimum(place, 4 - place).clamp(0, 1)

    return torch.cat([channel(5), channel(3), channel(1)], dim=2)

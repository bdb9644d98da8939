"""LPIPS with the VGG16 backbone (Zhang et al., arXiv 1801.03924), from weights that the user provides.

Nothing is fetched. A folder must hold two files:

    vgg16.pth   torchvision's ImageNet weights (`features.N.weight`, ...)
    lpips.pth   the linear heads of the lpips package, version 0.1, `vgg.pth` there (`lin0.model.1.weight`, ...)
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.api import WeightsError
from world_model.files import read_torch, reading

WIDTHS = (64, 128, 256, 512, 512)  # channels of the five stages
DEPTHS = (2, 2, 3, 3, 3)  # convolutions of each stage
MEAN, STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # input scaling for images in [-1, 1]


class LPIPS(nn.Module):
    """Distance between images; frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []  # index of each stage's last activation
        channels = 3
        for width, depth in zip(WIDTHS, DEPTHS, strict=True):
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.ModuleList(layers)  # numbered as torchvision's vgg16.features
        self.heads = nn.ParameterList([torch.zeros(1, width, 1, 1) for width in WIDTHS])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    @classmethod
    def from_folder(cls, folder: str | Path) -> "LPIPS":
        """Raises WeightsError: a file is missing or holds something else."""
        model, backbone, linear = cls(), Path(folder) / "vgg16.pth", Path(folder) / "lpips.pth"
        advice = "it must hold LPIPS-VGG weights, see world_model/metrics/perceptual.py"
        with reading(backbone, WeightsError, advice):
            weights = {k.split(".", 1)[1]: v for k, v in read_torch(backbone).items() if k.startswith("features.")}
            model.features.load_state_dict(weights)
        with reading(linear, WeightsError, advice):
            heads = read_torch(linear)
            for i, head in enumerate(model.heads):
                head.data.copy_(heads[f"lin{i}.model.1.weight"])
        return model

    def _stages(self, images: Tensor) -> list[Tensor]:
        x, stages = (images * 2 - 1 - self.mean) / self.std, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.taps:
                stages.append(F.normalize(x, dim=1, eps=1e-10))
        return stages

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> distance (B,)."""
        pairs = zip(self._stages(a), self._stages(b), self.heads, strict=True)
        return sum(((x - y).square() * head).sum(1).mean((1, 2)) for x, y, head in pairs)

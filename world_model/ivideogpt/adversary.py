"""A discriminator beside the tokenizer, for large images that L1 and LPIPS leave soft (256 x 256 in the paper).

It learns to tell decoded frames from true ones by a hinge loss, and the tokenizer to be mistaken for true. That term is
weighed so that its gradient at the last layer is as large as the perceptual loss's (VQGAN, Esser et al., arXiv
2012.09841, equation 7). Strided convolutions under spectral norm, instance norm, and one verdict for each patch, as in
the official code; there it learns on a batch of its own, here on the one that the tokenizer has just learned from.

Letters: P images, H W their size, h w the map of verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from world_model.ivideogpt import parallel

LARGEST_WEIGHT = 1e4


@dataclass(frozen=True)
class DiscriminatorConfig:
    # of its verdict in the tokenizer's loss, times the adaptive one; 0 leaves the discriminator out
    weight: Annotated[float, "[0, inf)"]
    after_updates: Annotated[int, "[0, inf)"]  # of the tokenizer, before it learns and judges
    lr: Annotated[float, "(0, inf)"]
    channels: tuple[Annotated[int, "[1, inf)"], ...]  # one halving each

    def __post_init__(self) -> None:
        if self.weight and not self.channels:
            raise ValueError("channels must not be empty")


class Discriminator(nn.Sequential):
    def __init__(self, channels: Sequence[int]):
        layers: list[nn.Module] = []
        for width_in, width in zip([3, *channels], channels, strict=False):
            layers.append(spectral_norm(nn.Conv2d(width_in, width, 3, stride=2, padding=1)))
            layers += [nn.InstanceNorm2d(width)] if len(layers) > 1 else []
            layers.append(nn.LeakyReLU(0.2))
        super().__init__(*layers, nn.Conv2d(channels[-1], 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(P, 3, H, W) in [0, 1] -> verdicts (P, 1, h, w), high for true; in float32, as the norms want."""
        with torch.autocast(images.device.type, enabled=False):
            return super().forward(images.float())


class HingeLoss(nn.Module):
    def __init__(self, discriminator: Discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, true: Tensor, decoded: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images (P, 3, H, W) of both kinds -> loss, metrics."""
        of_true, of_decoded = self.discriminator(torch.cat([true, decoded])).chunk(2)
        loss = F.relu(1 - of_true).mean() + F.relu(1 + of_decoded).mean()
        metrics = {"loss": loss, "true": of_true.mean(), "decoded": of_decoded.mean()}
        return loss, {f"discriminator_{name}": value.detach() for name, value in metrics.items()}


class Adversary:
    """The discriminator with its optimizer; its rate rises over `warmup_updates` from when it begins."""

    def __init__(
        self, config: DiscriminatorConfig, device: torch.device, warmup_updates: int, max_grad_norm: float
    ) -> None:
        self.config = config
        self.warmup_updates, self.max_grad_norm = warmup_updates, max_grad_norm
        self.discriminator = Discriminator(config.channels).to(device)
        self.loss = parallel.wrap(HingeLoss(self.discriminator))
        self.optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=config.lr, weight_decay=0.0, fused=True)
        self.updates = 0

    def judge(self, images: Tensor, reference: Tensor, last_layer: Tensor) -> Tensor:
        """The tokenizer's term: images (P, 3, H, W) that it decoded, the loss to weigh against, its last layer."""
        self.discriminator.requires_grad_(False).eval()  # without a step of its power iterations
        verdict = -self.discriminator(images).mean()
        wanted, got = (
            parallel.all_reduce_sum(torch.autograd.grad(loss, last_layer, retain_graph=True)[0]).norm()
            for loss in (reference, verdict)
        )
        return self.config.weight * (wanted / got.clamp_min(1e-8)).clamp_max(LARGEST_WEIGHT) * verdict

    def update(self, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """One gradient step on true and decoded images (P, 3, H, W), the parts of a batch."""
        self.updates += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * min(1.0, self.updates / max(1, self.warmup_updates))
        self.discriminator.requires_grad_(True)
        self.optimizer.zero_grad(set_to_none=True)
        found = []
        for i, (true, decoded) in enumerate(batches):
            self.discriminator.train(i == 0)  # one power iteration an update, however the batch is split
            with parallel.synchronised(self.loss, i == len(batches) - 1):
                loss, metrics = self.loss(true, decoded)
                (loss / len(batches)).backward()
            found.append(metrics)
        nn.utils.clip_grad_norm_(self.discriminator.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return parallel.mean(found)

    def state(self) -> dict[str, Any]:
        return {
            "weights": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]

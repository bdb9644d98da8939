"""Vector quantization with a straight-through gradient (van den Oord et al., arXiv 1711.00937).

The loss is the official one: beta |z - sg(e)|^2 + |e - sg(z)|^2, means over all elements, with beta = 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BETA = 1.0


class VectorQuantizer(nn.Module):
    """A codebook of K vectors of D numbers."""

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)

    def ids(self, z: Tensor) -> Tensor:
        """Nearest code by Euclidean distance: (..., D) -> int64 (...). In float32: bf16 would swap near codes."""
        with torch.autocast(z.device.type, enabled=False):
            weight = self.embedding.weight
            scores = F.linear(z.float(), weight) - 0.5 * weight.square().sum(-1)  # argmax of it = nearest
            return scores.argmax(-1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., D) -> quantized (..., D) with the gradient of z, ids (...), loss ()."""
        z = z.float()
        with torch.no_grad():
            ids = self.ids(z)
        codes = self.embedding(ids)
        loss = BETA * F.mse_loss(z, codes.detach()) + F.mse_loss(codes, z.detach())
        return z + (codes - z).detach(), ids, loss

    @torch.no_grad()
    def revive(self, dead: Tensor, z: Tensor, generator: torch.Generator) -> None:
        """Move codes that nothing uses onto encoder outputs: dead bool (K,), z (..., D).

        A codebook that starts at random is mostly never hit; restarting dead codes on data is the usual mend
        (Dhariwal et al., Jukebox, arXiv 2005.00341, appendix A).
        """
        flat = z.reshape(-1, z.shape[-1]).float()
        pick = torch.randint(len(flat), dead.shape, generator=generator, device=dead.device)
        self.embedding.weight.copy_(torch.where(dead[:, None], flat[pick], self.embedding.weight))

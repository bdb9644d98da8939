"""Where every token of a clip lies: the only home of token counts, offsets and special ids.

A clip of T frames, the first K of which are context, becomes one sequence (N tokens a context frame, n a future one):

    c0 .. cN-1 [scf] c0 .. cN-1 [sdf] d0 .. dn-1 [sdf] d0 .. dn-1  ...
    \\- frame 0 -/    \\- frame 1 -/    \\- frame 2 -/    \\- frame 3 -/          (drawn for K = 2)
    \\---- prefix: K (N+1) - 1 ----/  ^slot: + action   ^ last token: its hidden state tells the reward

A slot token opens every frame but the first. The embedding of the action that leads to a future frame is added to
the slot that opens it; the hidden state of that frame's last token predicts what the action earned.

Ids of the whole vocabulary: context codes, then dynamics codes, then `scf` (opens a context frame), then `sdf`
(opens a future frame). Source: iVideoGPT (arXiv 2405.15223), section 3.1 and the official checkpoints.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = -100  # label of a position without a loss, as in torch.nn.functional.cross_entropy


@dataclass(frozen=True)
class TokenLayout:
    context_length: int  # K, frames given
    context_tokens: int  # N, tokens of a context frame
    dynamics_tokens: int  # n, tokens of a future frame
    context_codes: int  # size of the context codebook
    dynamics_codes: int  # size of the dynamics codebook

    @property
    def first_dynamics_id(self) -> int:
        return self.context_codes

    @property
    def scf(self) -> int:
        return self.context_codes + self.dynamics_codes

    @property
    def sdf(self) -> int:
        return self.scf + 1

    @property
    def vocabulary(self) -> int:
        return self.sdf + 1

    @property
    def prefix(self) -> int:
        """Tokens before the first `sdf`."""
        return self.context_length * (self.context_tokens + 1) - 1

    @property
    def stride(self) -> int:
        """Tokens of a future frame with its slot."""
        return self.dynamics_tokens + 1

    def length(self, frames: int) -> int:
        """Tokens of a clip of `frames` frames, context included: L = (N+1) K + (n+1) (T-K) - 1."""
        return self.prefix + self.stride * (frames - self.context_length)

    def future_frames(self, length: int) -> int:
        """Future frames in a sequence of `length` tokens.

        Raises:
            ValueError: the sequence does not end at the end of a frame.
        """
        future, rest = divmod(length - self.prefix, self.stride)
        if rest or future < 0:
            raise ValueError(
                f"{length} tokens are no whole number of frames: expected {self.prefix} for the context "
                f"and {self.stride} for each future frame"
            )
        return future

    def slots(self, future: int) -> slice:
        """Positions of the `sdf` tokens of `future` future frames."""
        return slice(self.prefix, self.prefix + future * self.stride, self.stride)

    def last_tokens(self, future: int) -> slice:
        """Positions of the last token of each future frame."""
        return slice(self.prefix + self.dynamics_tokens, self.prefix + future * self.stride, self.stride)

    def join(self, context: Tensor, dynamics: Tensor) -> Tensor:
        """Codes of the frames to one sequence.

        Args:
            context: int64 (B, K, N), codes of the context codebook.
            dynamics: int64 (B, F, n), codes of the dynamics codebook.
        Returns:
            int64 (B, L), ids of the whole vocabulary.
        """
        batch, future = dynamics.shape[:2]
        scf = context.new_full((batch, self.context_length, 1), self.scf)
        sdf = context.new_full((batch, future, 1), self.sdf)
        context = torch.cat([scf, context], dim=2).flatten(1)[:, 1:]  # the first frame has no slot
        dynamics = torch.cat([sdf, dynamics + self.first_dynamics_id], dim=2).flatten(1)
        return torch.cat([context, dynamics], dim=1)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `join`: (B, L) to codes (B, K, N) and (B, F, n).

        An id outside a frame's codebook is drawn to the nearest id inside, so that any sequence can be decoded.
        """
        batch, length = tokens.shape
        future = self.future_frames(length)
        padded = torch.cat([tokens[:, :1], tokens[:, : self.prefix]], dim=1)  # a stand-in for the missing first slot
        context = padded.view(batch, self.context_length, self.context_tokens + 1)[:, :, 1:]
        dynamics = tokens[:, self.prefix :].reshape(batch, future, self.stride)[:, :, 1:]
        return (
            context.clamp(0, self.context_codes - 1),
            (dynamics - self.first_dynamics_id).clamp(0, self.dynamics_codes - 1),
        )

    def labels(self, tokens: Tensor) -> Tensor:
        """Targets: the dynamics tokens and the slots between them; everything up to the first `sdf` is IGNORE."""
        labels = tokens.clone()
        labels[:, : self.prefix + 1] = IGNORE
        return labels

"""What compression is measured against: a tokenizer that codes every frame by itself, and iVideoGPT over its tokens.

Each frame, context or future, goes through one VQ autoencoder, the context branch of the compressive tokenizer, and
becomes N tokens: what video transformers over VQ-GAN tokens do. All else is iVideoGPT's, so that they differ in tokens
alone: context and future frames keep codebooks of their own, and learner, losses and rollouts are the same.
Source: the study of tokenization efficiency in iVideoGPT (arXiv 2405.15223).

Letters: B clips, F future frames, N tokens a frame, D code width.
"""

from dataclasses import replace

from torch import Tensor

from world_model.ivideogpt.blocks import Memory
from world_model.ivideogpt.model import IVideoGPT
from world_model.ivideogpt.tokenizer import CompressiveTokenizer, TokenizerConfig


class PerFrameTokenizer(CompressiveTokenizer):
    """Of the sizes it takes the context branch's; `patch_size`, cross-attention and `blend` do not matter."""

    def __init__(self, config: TokenizerConfig):
        super().__init__(replace(config, patch_size=1, blend=False))  # one token a position of the map: n = N
        del self.cond_encoder, self.cond_decoder, self.quant_linear, self.post_quant_linear

    def encode_context(self, context: Tensor) -> tuple[Tensor, list[Memory]]:
        """Frames (B, K, 3, H, W) -> latents (B, K, N, D), and nothing to look at."""
        h, _ = self.encoder(self._folded(context.flatten(0, 1)))
        return self.quant_conv(h).flatten(2).transpose(1, 2).unflatten(0, context.shape[:2]), []

    def encode_future(self, future: Tensor, memory: list[Memory], last: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) -> latents (B, F, N, D)."""
        return self.encode_context(future)[0]

    def decode_context(self, codes: Tensor) -> tuple[Tensor, list[Memory]]:
        """Codes (B, K, N, D) -> frames (B, K, 3, H, W), and nothing to look at."""
        frames, _ = self.decoder(self._context_map(codes))
        return self._unfolded(frames).unflatten(0, codes.shape[:2]), []

    def decoding_memory(self, codes: Tensor) -> list[Memory]:
        """Nothing to look at."""
        return []

    def decode_future(self, codes: Tensor, memory: list[Memory] | None, last: Tensor) -> Tensor:
        """Codes (B, F, N, D) -> frames (B, F, 3, H, W)."""
        return self.decode_context(codes)[0]


class PerFrameGPT(IVideoGPT):
    tokenizer_class = PerFrameTokenizer

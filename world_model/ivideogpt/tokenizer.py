"""The compressive tokenizer: context frames keep their detail, a future frame costs only what changed.

A context frame becomes N tokens by an ordinary VQ autoencoder. A future frame is encoded and decoded while looking at
the context's feature maps, so n << N tokens are enough for it; p x p patches of its map are joined into one token.
Source: iVideoGPT (arXiv 2405.15223), section 3.1 and appendix A.1; weights load from the official checkpoints.

Letters: B clips, K context frames, F future frames, N n tokens a context / future frame, D code width, L tokens.
Images are float in [0, 1]; decoded ones may leave that range a little.
"""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.ivideogpt.blocks import ConditionalDecoder, ConditionalEncoder, Decoder, Encoder, Memory
from world_model.ivideogpt.layout import TokenLayout
from world_model.ivideogpt.quantizer import VectorQuantizer

INIT_COVER_LOGIT = -2.0  # logit of how far a drawn frame covers the last context frame in a model that knows nothing


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes, under the names of the official config.json."""

    in_channels: Annotated[int, "[3, 3]"]
    resolution: Annotated[int, "[1, inf)"]  # height and width of a frame, pixels
    # one level each; all but the last halve the map
    block_out_channels: Annotated[tuple[Annotated[int, "[4, inf)"], ...], "[1, inf)"]
    layers_per_block: Annotated[int, "[1, inf)"]
    latent_channels: Annotated[int, "[1, inf)"]
    norm_num_groups: Annotated[int, "[1, inf)"]
    mid_block_add_attention: bool  # of the context branch; the conditional one always has it
    num_vq_embeddings: Annotated[int, "[1, inf)"]  # context codebook
    num_dyn_embeddings: Annotated[int, "[1, inf)"]  # dynamics codebook
    patch_size: Annotated[int, "[1, inf)"]  # p: positions of the future map joined into one token, a side
    max_att_resolution: Annotated[int, "[1, inf)"]  # cross-attention where the map is at most this
    context_length: Annotated[int, "[1, inf)"]  # K
    cross_attention_dropout: Annotated[float, "[0, 1)"]
    # ours: blocks of so many pixels a side are the channels of one inside; 1 as officially
    space_to_depth: Annotated[int, "[1, inf)"]
    blend: bool  # ours: a future frame is seen beside the last context frame, and drawn over it where it differs

    def __post_init__(self) -> None:
        halvings = len(self.block_out_channels) - 1
        if self.resolution % (2**halvings * self.space_to_depth):
            folded = f" after space_to_depth={self.space_to_depth}" if self.space_to_depth > 1 else ""
            raise ValueError(f"resolution={self.resolution} cannot be halved {halvings} times{folded}")
        if any(width % 4 for width in self.block_out_channels):
            raise ValueError(f"block_out_channels={list(self.block_out_channels)} must be multiples of 4, for 4 heads")
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(
                f"norm_num_groups={self.norm_num_groups} must divide block_out_channels={list(self.block_out_channels)}"
            )

    @property
    def least_parameters(self) -> int:
        """A tokenizer of these sizes has more: of its layers only the convolutions within a level are counted."""
        convolutions = sum(8 * self.layers_per_block * 9 * width**2 for width in self.block_out_channels)
        return convolutions + (self.num_vq_embeddings + self.num_dyn_embeddings) * self.latent_channels

    @property
    def inner_resolution(self) -> int:
        """Side of the largest feature map."""
        return self.resolution // self.space_to_depth

    @property
    def context_resolution(self) -> int:
        """Side of the latent map of a context frame."""
        return self.inner_resolution >> (len(self.block_out_channels) - 1)

    @property
    def dynamics_resolution(self) -> int:
        """Side of the token map of a future frame."""
        return self.context_resolution // self.patch_size

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(
            context_length=self.context_length,
            context_tokens=self.context_resolution**2,
            dynamics_tokens=self.dynamics_resolution**2,
            context_codes=self.num_vq_embeddings,
            dynamics_codes=self.num_dyn_embeddings,
        )


class Reconstruction(NamedTuple):
    """What the tokenizer's training needs."""

    future: Tensor  # (B, F, 3, H, W)
    context: Tensor  # (B, K, 3, H, W)
    commit_loss: Tensor  # (), context codebook, codebook term included
    dynamics_commit_loss: Tensor  # ()
    context_ids: Tensor  # (B, K, N)
    dynamics_ids: Tensor  # (B, F, n)
    context_latents: Tensor  # (B, K, N, D) before quantization
    dynamics_latents: Tensor  # (B, F, n, D)


class CompressiveTokenizer(nn.Module):
    def __init__(self, config: TokenizerConfig):
        super().__init__()
        if config.context_resolution % config.patch_size:
            raise ValueError(
                f"patch_size {config.patch_size} does not divide the {config.context_resolution}-wide feature map"
            )
        self.config = config
        self.layout = config.layout
        latent, p = config.latent_channels, config.patch_size
        channels, layers, groups = config.block_out_channels, config.layers_per_block, config.norm_num_groups
        plain: dict[str, Any] = dict(channels=channels, layers=layers, groups=groups)
        conditional: dict[str, Any] = dict(
            max_resolution=config.max_att_resolution,
            context_length=config.context_length,
            dropout=config.cross_attention_dropout,
        )
        mid = config.mid_block_add_attention
        block = config.space_to_depth**2
        images = config.in_channels * block
        # With `blend` the future branch sees the change and the frame, and gives a frame and where it covers.
        seen, given = (2 * images, images + block) if config.blend else (images, images)
        self.encoder = Encoder(images, latent, **plain, mid_attention=mid)
        self.cond_encoder = ConditionalEncoder(seen, latent, **plain, resolution=config.inner_resolution, **conditional)
        self.quant_conv = nn.Conv2d(latent, latent, 1)
        self.quantize = VectorQuantizer(config.num_vq_embeddings, latent)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        self.quant_linear = nn.Linear(latent * p * p, latent)
        self.dynamics_quantize = VectorQuantizer(config.num_dyn_embeddings, latent)
        self.post_quant_linear = nn.Linear(latent, latent * p * p)
        self.decoder = Decoder(latent, images, **plain, mid_attention=mid)
        self.cond_decoder = ConditionalDecoder(
            latent, given, **plain, resolution=config.context_resolution, **conditional
        )
        if config.blend:  # at the start every future frame is grey that hardly covers the last context frame
            start = torch.cat([torch.full((images,), 0.5), torch.full((block,), INIT_COVER_LOGIT)])
            self.cond_decoder.conv_out.bias = nn.Parameter(start)

    def _folded(self, frames: Tensor) -> Tensor:
        """(P, C, H, W) -> (P, C s s, H / s, W / s)."""
        return F.pixel_unshuffle(frames, self.config.space_to_depth)

    def _unfolded(self, frames: Tensor) -> Tensor:
        """The inverse of `_folded`."""
        return F.pixel_shuffle(frames, self.config.space_to_depth)

    # -- the four halves ---------------------------------------------------------------------------------------------

    def encode_context(self, context: Tensor) -> tuple[Tensor, list[Memory]]:
        """Context frames (B, K, 3, H, W) -> latents (B, K, N, D) and what future frames look at while encoding."""
        h, features = self.encoder(self._folded(context.flatten(0, 1)))
        latents = self.quant_conv(h).flatten(2).transpose(1, 2)  # (B K, N, D)
        clips = context.shape[:2]
        return latents.unflatten(0, clips), self.cond_encoder.memory([f.unflatten(0, clips) for f in features])

    def encode_future(self, future: Tensor, memory: list[Memory], last: Tensor) -> Tensor:
        """Future frames (B, F, 3, H, W) -> latents (B, F, n, D).

        `last`, the last context frame (B, 3, H, W), is what a `blend` model compares them with.
        """
        p = self.config.patch_size
        if self.config.blend:
            future = torch.cat([future - last[:, None], future], dim=2)
        h = self.cond_encoder(self._folded(future.flatten(0, 1)), memory)  # (B F, C, H', W')
        h = h.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # (B F, C, h, p, w, p)
        h = h.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B F, n, p p C)
        return self.quant_linear(h).unflatten(0, future.shape[:2])

    def decode_context(self, codes: Tensor) -> tuple[Tensor, list[Memory]]:
        """Quantized context (B, K, N, D) -> frames (B, K, 3, H, W) and what future frames look at while decoding."""
        frames, features = self.decoder(self._context_map(codes))
        clips = codes.shape[:2]
        return self._unfolded(frames).unflatten(0, clips), self.cond_decoder.memory(
            [f.unflatten(0, clips) for f in features]
        )

    def decoding_memory(self, codes: Tensor) -> list[Memory]:
        """As `decode_context`, without the frames and the maps that only they need."""
        features = self.decoder.features(self._context_map(codes), max(self.cond_decoder.looked_at))
        return self.cond_decoder.memory([f.unflatten(0, codes.shape[:2]) for f in features])

    def _context_map(self, codes: Tensor) -> Tensor:
        side = self.config.context_resolution
        h = codes.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))  # (B K, D, H', W')
        return self.post_quant_conv(h)

    def decode_future(self, codes: Tensor, memory: list[Memory] | None, last: Tensor) -> Tensor:
        """Quantized future (B, F, n, D) -> frames (B, F, 3, H, W).

        `last`, the last context frame (B, 3, H, W), is what a `blend` model draws over. Without `memory` the
        cross-attention is left out: what the tokens say of a frame by themselves.
        """
        p, side = self.config.patch_size, self.config.dynamics_resolution
        h = self.post_quant_linear(codes.flatten(0, 1))  # (B F, n, p p C)
        h = h.unflatten(2, (p, p, -1)).unflatten(1, (side, side))  # (B F, h, w, p, p, C)
        h = h.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B F, C, H', W')
        frames = self._unfolded(self.cond_decoder(h, memory)).unflatten(0, codes.shape[:2])
        if not self.config.blend:
            return frames
        frames, cover = frames.split([self.config.in_channels, 1], dim=2)
        return torch.lerp(last[:, None].to(frames.dtype), frames, cover.sigmoid())

    # -- frames to tokens and back -----------------------------------------------------------------------------------

    def _split(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        shape = (config.in_channels, config.resolution, config.resolution)
        if frames.dim() != 5 or tuple(frames.shape[2:]) != shape or frames.shape[1] < config.context_length:
            raise ValueError(
                f"expected frames (B, T >= {config.context_length}, {', '.join(map(str, shape))}), "
                f"got {tuple(frames.shape)}"
            )
        return frames[:, : config.context_length], frames[:, config.context_length :]

    def tokenize(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames to one token sequence a clip (see layout.py).

        Args:
            frames: float (B, T, 3, H, W) in [0, 1]; the first K are context. T = K gives the context alone.
        Returns:
            tokens int64 (B, L) and labels int64 (B, L), -100 where there is no loss.
        """
        context, future = self._split(frames)
        latents, memory = self.encode_context(context)
        context_ids = self.quantize.ids(latents)
        if future.shape[1]:
            dynamics_ids = self.dynamics_quantize.ids(self.encode_future(future, memory, context[:, -1]))
        else:
            dynamics_ids = context_ids.new_empty(len(frames), 0, self.layout.dynamics_tokens)
        tokens = self.layout.join(context_ids, dynamics_ids)
        return tokens, self.layout.labels(tokens)

    def detokenize(self, tokens: Tensor) -> Tensor:
        """Tokens int64 (B, L) -> frames float (B, T, 3, H, W), not clamped.

        All there is here are tokens, so a `blend` model draws over the decoded context frame; a dream, which knows the
        real one, draws over that.
        """
        context_ids, dynamics_ids = self.layout.split(tokens)
        context, memory = self.decode_context(self.quantize.embedding(context_ids))
        if not dynamics_ids.shape[1]:
            return context
        future = self.decode_future(self.dynamics_quantize.embedding(dynamics_ids), memory, context[:, -1])
        return torch.cat([context, future], dim=1)

    def decode_alone(self, dynamics_ids: Tensor) -> Tensor:
        """Dynamics tokens (B, F, n), ids of their codebook -> frames (B, F, 3, H, W) without a look at the context.

        Shows what the dynamics tokens hold and what comes from the context (iVideoGPT, arXiv 2405.15223).
        A `blend` model draws over grey.
        """
        size = self.config.resolution
        codes = self.dynamics_quantize.embedding(dynamics_ids)
        return self.decode_future(codes, None, codes.new_full((len(codes), self.config.in_channels, size, size), 0.5))

    def forward(self, frames: Tensor, quantized: bool = True) -> Reconstruction:
        """Encode, quantize and decode: frames float (B, K + F, 3, H, W) in [0, 1]. Differentiable.

        Without `quantized` the latents are decoded as they are, as a plain autoencoder (losses stay those of the
        codebooks): a model that starts at random first learns what is worth a code.
        """
        context, future = self._split(frames)
        latents, encode_memory = self.encode_context(context)
        dynamics_latents = self.encode_future(future, encode_memory, context[:, -1])
        codes, context_ids, commit_loss = self.quantize(latents)
        dynamics_codes, dynamics_ids, dynamics_commit_loss = self.dynamics_quantize(dynamics_latents)
        if not quantized:
            codes, dynamics_codes = latents, dynamics_latents
        decoded, decode_memory = self.decode_context(codes)
        return Reconstruction(
            future=self.decode_future(dynamics_codes, decode_memory, context[:, -1]),
            context=decoded,
            commit_loss=commit_loss,
            dynamics_commit_loss=dynamics_commit_loss,
            context_ids=context_ids,
            dynamics_ids=dynamics_ids,
            context_latents=latents,
            dynamics_latents=dynamics_latents,
        )

"""Learning of the world model, online and beforehand: tokenizer, transformer and reward head, each when it is due.

    metrics = learner.update(clips, frames)          # transformer and reward head, tokenizer

The tokenizer learns to reconstruct context frames and a few sampled future frames (L1 + commitment, and LPIPS where its
weights are at hand); the transformer learns the next token and the reward on tokens of the tokenizer as it stands.
Source: iVideoGPT (arXiv 2405.15223), section 4.3 and Table 5; AdamW and clipping as in the official code. In a process
group, each process is given its slice of the batch (`world_model/parallel.py`).

Letters: B clips, T frames, K context frames, F sampled future frames, A action.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from world_model import parallel
from world_model.adversary import Adversary, DiscriminatorConfig
from world_model.losses import TokenizerLoss, TransformerLoss
from world_model.metrics import moved
from world_model.model import IVideoGPT
from world_model.perceptual import LPIPS

WINDOW = 20  # tokenizer updates over which the use of codes is watched


class Clips(NamedTuple):
    """A batch of real clips; how actions and rewards line up with frames is drawn in `agents/api.py`."""

    frames: Tensor  # float (B, T, 3, H, W) in [0, 1]
    actions: Tensor  # float (B, T, A); the last one is not used
    rewards: Tensor  # float (B, T), environment units; the last one is not used


class TokenClips(NamedTuple):
    """The same with frames already tokenized, where the tokenizer does not change."""

    tokens: Tensor  # int64 (B, L)
    actions: Tensor  # float (B, T, A)
    rewards: Tensor  # float (B, T)


@dataclass(frozen=True)
class LearnerConfig:
    batch_size: int  # clips of a transformer update
    segment_length: int  # T, frames of such a clip
    tokenizer_batch_size: int  # clips of a tokenizer update
    tokenizer_span: int  # frames among which such a clip's future frames are drawn; segment_length as officially
    tokenizer_lr: float
    transformer_lr: float
    warmup_updates: int  # both rates rise linearly over this many updates
    decay_updates: int  # and fall until this many; 0 keeps them, as officially online
    decay: Literal["linear", "cosine"]  # to a tenth, from the first update on; or to nothing, after the warm-up
    weight_decay: float
    max_grad_norm: float
    reward_weight: float
    token_noise: float  # most of the dynamics tokens it reads that are replaced by random ones; 0 as officially
    sampled_future_frames: int  # F, future frames of a clip that the tokenizer reconstructs in one update
    embed_codes: bool  # a transformer that has learned nothing begins with the tokenizer's codes; false as officially
    freeze_codebooks: bool  # as officially when starting from pre-trained weights
    quantize_after: int  # tokenizer updates as a plain autoencoder before codes are used; 0 as officially
    revive_codes_until: int  # updates after that during which unused codes are restarted; 0 never, as officially
    mse_weight: float  # of squared error beside L1 in the reconstruction loss; 0 as officially
    motion_weight: float  # of the same error averaged over the pixels that move alone; 0 as officially
    perceptual_weights: str  # folder with LPIPS-VGG weights, or "none"
    precision: str  # "auto" (bf16 where the device computes in it), "fp32" or "bf16"

    def __post_init__(self) -> None:
        if self.freeze_codebooks and (self.quantize_after or self.revive_codes_until):
            raise ValueError("freeze_codebooks=true goes with quantize_after=0 and revive_codes_until=0")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The reduced precision to compute in, or None for float32.

    Raises:
        ValueError: `precision` is none of auto, fp32, bf16.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision={precision}: it must be auto, fp32 or bf16")
    if precision == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            cpu = torch.cpu.get_capabilities() if device.type == "cpu" else {}
            native = bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16"))
        precision = "bf16" if native else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


class WorldModelLearner:
    """
    Args:
        discriminator: judges the tokenizer's pictures as well; see `world_model/adversary.py`.
        accumulate: parts that a batch is split into, one after the other in memory.
        sharded: in a process group, whether processes keep shares of the transformer instead of copies.
    """

    def __init__(
        self,
        model: IVideoGPT,
        config: LearnerConfig,
        seed: int,
        discriminator: DiscriminatorConfig | None = None,
        accumulate: int = 1,
        sharded: bool = False,
    ):
        self.model = model
        self.config = config
        self.accumulate = accumulate
        self.dtype = autocast_dtype(config.precision, model.device)
        perceptual = None
        if config.perceptual_weights != "none":
            perceptual = LPIPS.from_folder(config.perceptual_weights).to(model.device)
        codebooks = {name: getattr(model.tokenizer, name) for name in ("quantize", "dynamics_quantize")}
        self.used = {
            name: torch.zeros(codebook.embedding.num_embeddings, dtype=torch.bool, device=model.device)
            for name, codebook in codebooks.items()
        }
        if config.freeze_codebooks:
            for codebook in codebooks.values():
                codebook.requires_grad_(False)
        tokenizer_loss = TokenizerLoss(model.tokenizer, config.mse_weight, config.motion_weight, perceptual)
        self.reconstruction_loss = tokenizer_loss.words  # what the tokenizer's pictures are trained on
        self.losses = {
            "tokenizer": parallel.spread(tokenizer_loss, some_unused=config.quantize_after > 0),
            "transformer": parallel.spread(
                TransformerLoss(model, config.reward_weight), model.transformer.blocks if sharded else None
            ),
        }
        # The losses come first: a sharded module has other parameters than before.
        tokenizer = [p for p in model.tokenizer.parameters() if p.requires_grad]
        transformer = [p for name, p in model.named_parameters() if not name.startswith("tokenizer.")]
        self.parameters = {"tokenizer": tokenizer, "transformer": transformer}
        self.optimizers = {
            name: torch.optim.AdamW(
                [
                    {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
                    {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
                ],
                lr=getattr(config, f"{name}_lr"),
                fused=True,
            )
            for name, parameters in self.parameters.items()
        }
        self.adversary = None
        if discriminator is not None and discriminator.weight:
            self.adversary = Adversary(discriminator, model.device, config.warmup_updates, config.max_grad_norm)
        self.updates = {"tokenizer": 0, "transformer": 0}
        self.generator = torch.Generator(model.device).manual_seed(seed)
        model.eval()  # dropout is switched on inside an update and nowhere else

    def autocast(self) -> AbstractContextManager:
        """The precision of everything the world model computes, dreams included."""
        return torch.autocast(self.model.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def update(self, clips: Clips | TokenClips | None = None, frames: Tensor | None = None) -> dict[str, Tensor]:
        """One gradient step of the parts that are given something to learn from.

        Args:
            clips: for the transformer and its heads; they wait until the tokenizer uses its codes (`quantize_after`).
            frames: for the tokenizer, float (B, span, 3, H, W) in [0, 1], K context frames first.
        Returns:
            detached scalars, still on the device.
        """
        metrics: dict[str, Tensor] = {}
        self.model.train()
        if frames is not None:
            metrics |= self._update_tokenizer(frames)
        if clips is not None and self.updates["tokenizer"] >= self.config.quantize_after:
            metrics |= self._update_transformer(clips)
        self.model.eval()
        return metrics

    def _rate(self, name: str) -> float:
        """The learning rate of the update that is being made."""
        config, done = self.config, self.updates[name]
        rate = min(1.0, done / max(1, config.warmup_updates))
        if config.decay_updates and config.decay == "linear":
            rate *= max(0.1, 1 - 0.9 * done / config.decay_updates)
        elif config.decay_updates:
            falling = (done - 1 - config.warmup_updates) / max(1, config.decay_updates - config.warmup_updates)
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, falling))))
        return getattr(config, f"{name}_lr") * rate

    def _step(self, name: str, parts: Sequence[tuple[Any, ...]]) -> tuple[dict[str, Tensor], list[list[Any]]]:
        """One gradient step on the parts of a batch; the loss's metrics, and what else it gave for each part."""
        optimizer, found, given = self.optimizers[name], [], []
        self.updates[name] += 1
        for group in optimizer.param_groups:
            group["lr"] = self._rate(name)
        optimizer.zero_grad(set_to_none=True)
        for i, part in enumerate(parts):
            with parallel.synchronised(self.losses[name], i == len(parts) - 1):
                with self.autocast():
                    loss, metrics, *rest = self.losses[name](*part)
                (loss / len(parts)).backward()
            found.append(metrics)
            given.append(rest)
        norm = nn.utils.clip_grad_norm_(self.parameters[name], self.config.max_grad_norm)
        optimizer.step()
        return parallel.mean(found) | {f"{name}_grad_norm": parallel.whole(norm)}, given

    def _choose(self, future: int, device: torch.device) -> Tensor:
        """Which of the future frames to reconstruct: uniformly from a clip; from a longer span half of them near.

        Far frames differ much from the context, which teaches what the robot looks like anywhere; near ones are what
        dreams are made of.
        """
        count, clip = self.config.sampled_future_frames, self.config.segment_length - self.model.layout.context_length

        def draw(among: int, count: int) -> Tensor:
            return torch.randperm(among, generator=self.generator, device=device)[:count]

        if future <= clip:
            return draw(future, count)
        return torch.cat([draw(clip, count - count // 2), draw(future, count // 2)])

    def _update_tokenizer(self, frames: Tensor) -> dict[str, Tensor]:
        config, context_length = self.config, self.model.layout.context_length
        chosen = self._choose(frames.shape[1] - context_length, frames.device)
        context, target = frames[:, :context_length], frames[:, context_length + chosen]  # (B, K, ...), (B, F, ...)
        quantized = self.updates["tokenizer"] >= config.quantize_after
        moving_values = frames.new_ones(())
        if config.motion_weight:
            moving = parallel.total(moved(target, context[:, -1]).sum())
            moving_values = (3 * moving + 1) / (parallel.processes() * self.accumulate)
        adversary = self.adversary
        if adversary is not None and self.updates["tokenizer"] < adversary.config.after_updates:
            adversary = None
        pictures = list(zip(context.chunk(self.accumulate), target.chunk(self.accumulate), strict=True))
        judge = adversary.judge if adversary is not None else None
        metrics, given = self._step("tokenizer", [(*part, moving_values, quantized, judge) for part in pictures])
        outs = [out for (out,) in given]
        if adversary is not None:
            true = [torch.cat([context.flatten(0, 1), target.flatten(0, 1)]) for context, target in pictures]
            decoded = [torch.cat([out.context.flatten(0, 1), out.future.flatten(0, 1)]) for out in outs]
            metrics |= adversary.update(list(zip(true, decoded, strict=True)))
        for name, kind in (("quantize", "context"), ("dynamics_quantize", "dynamics")):
            ids, latents = (torch.cat([getattr(out, f"{kind}_{of}") for out in outs]) for of in ("ids", "latents"))
            metrics |= self._watch_codes(name, ids, latents)
        return metrics

    def _watch_codes(self, name: str, ids: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Note which codes are used and restart the dead ones when due.

        Returns the share in use in the running window, and the perplexity of this batch: as many codes, used equally
        often, would say as much.
        """
        config, used = self.config, self.used[name]
        counts = torch.zeros(len(used), device=ids.device)
        counts = parallel.total(counts.scatter_add_(0, ids.flatten(), counts.new_ones(ids.numel())))
        perplexity = torch.special.entr(counts / counts.sum()).sum().exp()
        done = self.updates["tokenizer"] - config.quantize_after  # updates since codes are used
        share = perplexity.new_zeros(())
        if done > 0:
            used |= counts > 0
            share = used.float().mean()
        if done == 1 or (done > 0 and done % WINDOW == 0):
            if done <= config.revive_codes_until:
                # At the first update every code is restarted: it spreads a random codebook over what the encoder gives.
                dead = ~used if done > 1 else torch.ones_like(used)
                getattr(self.model.tokenizer, name).revive(dead, parallel.joined(latents), self.generator)
            used.zero_()
        return {f"{name}_codes_used": share, f"{name}_perplexity": perplexity}

    def _update_transformer(self, clips: Clips | TokenClips) -> dict[str, Tensor]:
        if self.config.embed_codes and not self.updates["transformer"]:
            self.model.begin(self.generator)
        with self.autocast():
            tokens = clips.tokens if isinstance(clips, TokenClips) else self.model.tokens(clips.frames)[0]
        batch = (self._noisy(tokens), self.model.layout.labels(tokens), clips.actions, clips.rewards)
        parts = zip(*(field.chunk(self.accumulate) for field in batch), strict=True)
        return self._step("transformer", list(parts))[0]

    def _noisy(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) of which a share, drawn for each clip from 0 to `token_noise`, is random among the dynamics.

        What a frame shows then follows less from the frame before and more from the context and the actions since, and
        a dream is less led astray by its own mistakes.
        """
        if not self.config.token_noise:
            return tokens
        layout, device = self.model.layout, tokens.device
        whole = (len(tokens) * parallel.processes(), tokens.shape[1])  # drawn for all, whoever asks
        share = self.config.token_noise * torch.rand(whole[0], 1, generator=self.generator, device=device)
        hit = torch.rand(whole, generator=self.generator, device=device) < share
        first, end = layout.first_dynamics_id, layout.first_dynamics_id + layout.dynamics_codes
        random = torch.randint(first, end, whole, generator=self.generator, device=device)
        hit, random = (drawn[parallel.mine(whole[0])] for drawn in (hit, random))
        return torch.where(hit & (tokens >= first) & (tokens < end), random, tokens)

    def in_one_piece(self) -> "WorldModelLearner":
        """This learner, its model put together where processes keep shares of it: to look at and to save."""
        if not parallel.is_cut_up(self.model):
            return self
        learner, model = copy.copy(self), self.model
        with torch.device("meta"):  # only its shape: weights drawn here would move the random stream of dropout
            learner.model = type(model)(
                model.tokenizer.config, model.transformer.config, model.action_dim, model.reward_linear is not None
            )
        learner.model.load_state_dict(parallel.whole(model.state_dict()), assign=True)
        for name, buffer in model.named_buffers():  # constants belong to no state and would stay on meta
            module, _, attribute = name.rpartition(".")
            setattr(learner.model.get_submodule(module), attribute, buffer)
        learner.model.eval()
        return learner

    def state(self) -> dict[str, Any]:
        """Everything but the model's weights; loads with `weights_only=True`."""
        return {
            "optimizers": {name: parallel.whole(optimizer.state_dict()) for name, optimizer in self.optimizers.items()},
            "updates": dict(self.updates),
            "used": dict(self.used),
            "generator": self.generator.get_state(),
            **({"adversary": self.adversary.state()} if self.adversary is not None else {}),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            parallel.load_optimizer(optimizer, state["optimizers"][name])
        self.updates = dict(state["updates"])
        self.used = {name: used.to(self.model.device) for name, used in state["used"].items()}
        self.generator.set_state(state["generator"].cpu())
        if self.adversary is not None:
            self.adversary.load_state(state["adversary"])

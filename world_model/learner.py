"""Online learning of the world model: tokenizer, transformer and reward head, each when it is due.

    metrics = learner.update(clips, frames)          # transformer and reward head, tokenizer

The tokenizer learns to reconstruct context frames and a few sampled future frames (L1 + commitment, and LPIPS where its
weights are at hand); the transformer learns the next token and the reward on tokens of the tokenizer as it stands.
Source: iVideoGPT (arXiv 2405.15223), section 4.3 and Table 5; AdamW and clipping as in the official code.

Letters: B clips, T frames, K context frames, F sampled future frames, A action.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
    decay_updates: int  # and fall linearly to a tenth over this many; 0 keeps them, as officially
    weight_decay: float
    max_grad_norm: float
    reward_weight: float
    token_noise: float  # most of the dynamics tokens it reads that are replaced by random ones; 0 as officially
    sampled_future_frames: int  # F, future frames of a clip that the tokenizer reconstructs in one update
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
    def __init__(self, model: IVideoGPT, config: LearnerConfig, seed: int):
        self.model = model
        self.config = config
        self.dtype = autocast_dtype(config.precision, model.device)
        self.perceptual = None
        if config.perceptual_weights != "none":
            self.perceptual = LPIPS.from_folder(config.perceptual_weights).to(model.device)
        codebooks = {name: getattr(model.tokenizer, name) for name in ("quantize", "dynamics_quantize")}
        self.used = {
            name: torch.zeros(codebook.embedding.num_embeddings, dtype=torch.bool, device=model.device)
            for name, codebook in codebooks.items()
        }
        if config.freeze_codebooks:
            for codebook in codebooks.values():
                codebook.requires_grad_(False)
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
        self.updates = {"tokenizer": 0, "transformer": 0}
        self.generator = torch.Generator(model.device).manual_seed(seed)
        model.eval()  # dropout is switched on inside an update and nowhere else

    @property
    def reconstruction_loss(self) -> str:
        """What the tokenizer's pictures are trained on, in words."""
        config = self.config
        terms = ["L1"]
        terms += [f"{config.mse_weight:g} MSE"] if config.mse_weight else []
        terms += [f"{config.motion_weight:g} of it on pixels that move"] if config.motion_weight else []
        terms += ["LPIPS"] if self.perceptual is not None else []
        return " + ".join(terms) + ("" if self.perceptual is not None else ", no LPIPS (perceptual_weights=none)")

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

    def _step(self, name: str, loss: Tensor) -> Tensor:
        """Backward, clip, step; returns the gradient norm."""
        config, optimizer = self.config, self.optimizers[name]
        self.updates[name] += 1
        rate = min(1.0, self.updates[name] / max(1, config.warmup_updates))
        if config.decay_updates:
            rate *= max(0.1, 1 - 0.9 * self.updates[name] / config.decay_updates)
        for group in optimizer.param_groups:
            group["lr"] = getattr(config, f"{name}_lr") * rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters[name], config.max_grad_norm)
        optimizer.step()
        return norm

    def _reconstruction(self, target: Tensor, output: Tensor) -> dict[str, Tensor]:
        """Losses between pictures (B, F, 3, H, W)."""
        losses = {"pixel": self._error(target, output).mean()}
        if self.perceptual is not None:
            losses["lpips"] = self.perceptual(target.flatten(0, 1), output.flatten(0, 1)).mean()
        return losses

    def _error(self, target: Tensor, output: Tensor) -> Tensor:
        difference = output.float() - target
        return difference.abs() + self.config.mse_weight * difference.square()

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
        with self.autocast():
            quantized = self.updates["tokenizer"] >= config.quantize_after
            out = self.model.tokenizer(torch.cat([context, target], dim=1), quantized)
            losses = {
                **self._reconstruction(target, out.future),
                **{f"context_{name}": loss for name, loss in self._reconstruction(context, out.context).items()},
            }
            if config.motion_weight:
                moving = moved(target, context[:, -1])  # (B, F, 1, H, W)
                error = (moving * self._error(target, out.future)).sum() / (3 * moving.sum() + 1)
                losses["motion"] = config.motion_weight * error
            if quantized:
                losses |= {"commit": out.commit_loss, "dynamics_commit": out.dynamics_commit_loss}
        loss = torch.stack([value.float() for value in losses.values()]).sum()
        norm = self._step("tokenizer", loss)
        metrics = {f"tokenizer_{name}": value.detach() for name, value in losses.items()}
        metrics |= {"tokenizer_loss": loss.detach(), "tokenizer_grad_norm": norm}
        for name, ids, latents in (
            ("quantize", out.context_ids, out.context_latents),
            ("dynamics_quantize", out.dynamics_ids, out.dynamics_latents),
        ):
            metrics[f"{name}_codes_used"] = self._watch_codes(name, ids, latents.detach())
        return metrics

    def _watch_codes(self, name: str, ids: Tensor, latents: Tensor) -> Tensor:
        """Note which codes are used and restart the dead ones when due; the share in use in the running window."""
        config, used = self.config, self.used[name]
        done = self.updates["tokenizer"] - config.quantize_after  # updates since codes are used
        if done <= 0:
            return ids.new_zeros((), dtype=torch.float32)
        used[ids.flatten()] = True
        share = used.float().mean()
        if done == 1 or done % WINDOW == 0:
            if done <= config.revive_codes_until:
                # At the first update every code is restarted: it spreads a random codebook over what the encoder gives.
                dead = ~used if done > 1 else torch.ones_like(used)
                getattr(self.model.tokenizer, name).revive(dead, latents, self.generator)
            used.zero_()
        return share

    def _update_transformer(self, clips: Clips | TokenClips) -> dict[str, Tensor]:
        with self.autocast():
            tokens = clips.tokens if isinstance(clips, TokenClips) else self.model.tokens(clips.frames)[0]
            labels = self.model.layout.labels(tokens)
            out = self.model.predict(self._noisy(tokens), labels, clips.actions, clips.rewards)
            loss = out.ce_loss
            if out.reward_loss is not None:
                loss = loss + self.config.reward_weight * out.reward_loss
        norm = self._step("transformer", loss)
        metrics = {
            "transformer_loss": loss.detach(),
            "transformer_ce_loss": out.ce_loss.detach(),
            "transformer_grad_norm": norm,
        }
        return metrics if out.reward_loss is None else metrics | {"reward_loss": out.reward_loss.detach()}

    def _noisy(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L) of which a share, drawn for each clip from 0 to `token_noise`, is random among the dynamics.

        What a frame shows then follows less from the frame before and more from the context and the actions since, and
        a dream is less led astray by its own mistakes.
        """
        if not self.config.token_noise:
            return tokens
        layout, device = self.model.layout, tokens.device
        share = self.config.token_noise * torch.rand(len(tokens), 1, generator=self.generator, device=device)
        hit = torch.rand(tokens.shape, generator=self.generator, device=device) < share
        first, end = layout.first_dynamics_id, layout.first_dynamics_id + layout.dynamics_codes
        random = torch.randint(first, end, tokens.shape, generator=self.generator, device=device)
        return torch.where(hit & (tokens >= first) & (tokens < end), random, tokens)

    def state(self) -> dict[str, Any]:
        """Everything but the model's weights; loads with `weights_only=True`."""
        return {
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "updates": dict(self.updates),
            "used": dict(self.used),
            "generator": self.generator.get_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.updates = dict(state["updates"])
        self.used = {name: used.to(self.model.device) for name, used in state["used"].items()}
        self.generator.set_state(state["generator"].cpu())

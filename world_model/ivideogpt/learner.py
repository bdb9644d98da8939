"""Learning of iVideoGPT, online and beforehand: tokenizer, transformer and heads, each when it is due.

    batch = learner.sample(clips, frame)             # what the updates that are due learn from, or None
    metrics = learner.update(*batch)
    rollout = learner.start(context)                 # dreams in the precision of the learning

The tokenizer learns to reconstruct context frames and a few sampled future frames (L1 + commitment, and LPIPS where its
weights are at hand); the transformer learns the next token and the reward on tokens of the tokenizer as it stands.
Source: iVideoGPT (arXiv 2405.15223), section 4.3 and Table 5; AdamW and clipping as in the official code. In a process
group, each process is given its slice of the batch (`world_model/ivideogpt/parallel.py`).

Letters: B clips, T frames, K context frames, F sampled future frames, A action.
"""

import copy
import math
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from world_model.api import Clips, ClipSampler, Dream, StartOptions
from world_model.ivideogpt import parallel
from world_model.ivideogpt.adversary import Adversary, DiscriminatorConfig
from world_model.ivideogpt.config import LearnerConfig, Rhythm, TokenClips
from world_model.ivideogpt.losses import TokenizerLoss, TransformerLoss, split_targets
from world_model.ivideogpt.model import IVideoGPT
from world_model.ivideogpt.rollout import TokenRollout
from world_model.metrics import copied_share, moved, moving_errors
from world_model.metrics.perceptual import LPIPS
from world_model.precision import autocast_dtype

WINDOW = 20  # tokenizer updates over which the use of codes is watched


@contextmanager
def training_mode(module: nn.Module) -> Iterator[None]:
    """Dropout while the body runs, and not behind it, however it ends."""
    module.train()
    try:
        yield
    finally:
        module.eval()


class WorldModelLearner:
    """iVideoGPT as a `world_model.api.WorldModel`.

    Args:
        rhythm: of `sample`; without it everything is due always.
        discriminator: judges the tokenizer's images as well; see `world_model/ivideogpt/adversary.py`.
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
        rhythm: Rhythm | None = None,
    ):
        self.model = model
        self.config = config
        self.rhythm = rhythm
        self._still = threading.RLock()  # held while weights change, and by whoever needs them not to
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
        self.reconstruction_loss = tokenizer_loss.description  # what the tokenizer's images are trained on
        self.losses = {
            "tokenizer": parallel.wrap(tokenizer_loss, some_unused=config.quantize_after > 0),
            "transformer": parallel.wrap(
                TransformerLoss(model, {"reward": config.reward_weight}), model.transformer.blocks if sharded else None
            ),
        }
        # The losses come first: a sharded module has other parameters than before.
        tokenizer = [p for p in model.tokenizer.parameters() if p.requires_grad]
        transformer = [p for name, p in model.named_parameters() if not name.startswith("tokenizer.")]
        self.parameters = {"tokenizer": tokenizer, "transformer": transformer}
        embedding = model.transformer.embedding.weight

        def decays(parameter: nn.Parameter) -> bool:  # matrices; of the token embedding not, as officially
            return parameter.dim() > 1 and parameter is not embedding

        self.optimizers = {
            name: torch.optim.AdamW(
                [
                    {"params": [p for p in parameters if decays(p)], "weight_decay": config.weight_decay},
                    {"params": [p for p in parameters if not decays(p)], "weight_decay": 0.0},
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

    # -- dreaming ----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def context_length(self) -> int:
        return self.model.layout.context_length

    @property
    def heads(self) -> Collection[str]:
        return tuple(self.model.heads)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While the body runs nothing is learned; see `world_model.api.WorldModel.frozen`."""
        with self._still:
            yield

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with self._still, self.autocast():
            yield

    def start(self, context: Tensor, *, horizon: int | None = None, **options: Unpack[StartOptions]) -> TokenRollout:
        """Begin to dream; see `world_model.api.WorldModel.start`."""
        return self.model.start(context, horizon=horizon, guard=self._inference, **options)

    @torch.no_grad()
    def diagnose(self, clips: Clips, dream: Dream) -> dict[str, float]:
        """What the tokenizer alone loses of real clips (B, T, ...), and how well tokens are predicted and copied."""
        model, layout = self.model, self.model.layout
        context, true = clips.frames[:, : layout.context_length], clips.frames[:, layout.context_length :]
        with self._inference():
            tokens, labels = model.tokenizer.tokenize(clips.frames)
            reconstruction = model.tokenizer(clips.frames).future
            logits = model.predict(tokens, labels, clips.actions).logits
        targets, argmax = tokens[:, layout.prefix + 1 :], logits[:, :-1].argmax(-1)
        assert dream.tokens is not None
        return {
            "reconstruction_error_ratio": moving_errors(reconstruction.float(), true, context[:, -1]).ratio,
            "token_accuracy": float((argmax == targets).float().mean()),
            "copied_tokens": float(copied_share(dream.tokens)),
            "copied_tokens_true": float(copied_share(layout.split(tokens)[1])),
        }

    # -- learning ----------------------------------------------------------------------------------------------------

    def sample(self, clips: ClipSampler, frame: int | None = None) -> tuple[Clips | None, Tensor | None] | None:
        """Draw what the updates due at `frame` learn from; see `world_model.api.WorldModel.sample`."""
        transformer, tokenizer = (True, True) if self.rhythm is None or frame is None else self.rhythm.due(frame)
        if not (transformer or tokenizer):
            return None
        config = self.config
        return (
            clips.clips(config.batch_size, config.segment_length) if transformer else None,
            clips.clips(config.tokenizer_batch_size, config.tokenizer_span).frames if tokenizer else None,
        )

    def update(self, clips: Clips | TokenClips | None = None, frames: Tensor | None = None) -> dict[str, Tensor]:
        """One gradient step of the parts that are given something to learn from.

        Args:
            clips: for the transformer and its heads; they wait until the tokenizer uses its codes (`quantize_after`).
            frames: for the tokenizer, float (B, span, 3, H, W) in [0, 1], K context frames first.
        Returns:
            detached scalars, still on the device.
        """
        metrics: dict[str, Tensor] = {}
        with self._still, training_mode(self.model):
            self.model.tokenizer.train(self.config.tokenizer_dropout)
            if frames is not None:
                metrics |= self._update_tokenizer(frames)
            if clips is not None and self._codes_are_used:
                metrics |= self._update_transformer(clips)
        return metrics

    @property
    def _codes_are_used(self) -> bool:
        """Whether the codebooks have had an update: before it, those that start at random are of no use."""
        after = self.config.quantize_after
        return after == 0 or self.updates["tokenizer"] > after

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
        return parallel.mean(found) | {f"{name}_grad_norm": parallel.full_state(norm)}, given

    def _choose(self, clips: int, future: int, device: torch.device) -> Tensor:
        """Which future frames of each clip to reconstruct, int64 (B, F): any; from a longer span half of them near.

        Far frames differ much from the context, which teaches what the robot looks like anywhere; near ones are what
        dreams are made of.
        """
        count, near = self.config.sampled_future_frames, self.config.segment_length - self.model.layout.context_length
        rows = clips * parallel.processes()  # drawn for all processes, whichever this is

        def draw(among: int, count: int) -> Tensor:
            return torch.rand(rows, among, generator=self.generator, device=device).argsort(1)[:, :count]

        if future <= near:
            chosen = draw(future, count)
        else:
            chosen = torch.cat([draw(near, count - count // 2), draw(future, count // 2)], dim=1)
        return chosen[parallel.local_slice(rows)]

    def _update_tokenizer(self, frames: Tensor) -> dict[str, Tensor]:
        config, context_length = self.config, self.model.layout.context_length
        chosen = self._choose(len(frames), frames.shape[1] - context_length, frames.device)  # (B, F)
        rows = torch.arange(len(frames), device=frames.device)[:, None]
        context, target = frames[:, :context_length], frames[rows, context_length + chosen]  # (B, K, ...), (B, F, ...)
        quantized = self.updates["tokenizer"] >= config.quantize_after
        moving_values = frames.new_ones(())
        if config.motion_weight:
            moving = parallel.all_reduce_sum(moved(target, context[:, -1]).sum())
            moving_values = (3 * moving + 1) / (parallel.processes() * self.accumulate)
        adversary = self.adversary
        if adversary is not None and self.updates["tokenizer"] < adversary.config.after_updates:
            adversary = None
        images = list(zip(context.chunk(self.accumulate), target.chunk(self.accumulate), strict=True))
        judge = adversary.judge if adversary is not None else None
        metrics, given = self._step("tokenizer", [(*part, moving_values, quantized, judge) for part in images])
        outs = [out for (out,) in given]
        if adversary is not None:
            true = [torch.cat([context.flatten(0, 1), target.flatten(0, 1)]) for context, target in images]
            decoded = [torch.cat([out.context.flatten(0, 1), out.future.flatten(0, 1)]) for out in outs]
            metrics |= adversary.update(list(zip(true, decoded, strict=True)))
        for name, kind in (("quantize", "context"), ("dynamics_quantize", "dynamics")):
            ids, latents = (torch.cat([getattr(out, f"{kind}_{of}") for out in outs]) for of in ("ids", "latents"))
            metrics |= self._watch_codes(name, ids, latents)
        return metrics

    def _watch_codes(self, name: str, ids: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """Note which codes are used and restart the dead ones when due.

        Returns the share in use in the running window, and the perplexity of this batch: the effective number of
        codes in use.
        """
        config, used = self.config, self.used[name]
        counts = torch.zeros(len(used), device=ids.device)
        counts = parallel.all_reduce_sum(counts.scatter_add_(0, ids.flatten(), counts.new_ones(ids.numel())))
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
                getattr(self.model.tokenizer, name).revive(dead, parallel.all_gather(latents), self.generator)
            used.zero_()
        return {f"{name}_codes_used": share, f"{name}_perplexity": perplexity}

    def _update_transformer(self, clips: Clips | TokenClips) -> dict[str, Tensor]:
        if self.config.embed_codes and not self.updates["transformer"]:
            self.model.begin(self.generator)
        with self.autocast():
            tokens = clips.tokens if isinstance(clips, TokenClips) else self.model.tokens(clips.frames)[0]
        noisy, clean = self._corrupt(tokens)
        batch = (noisy, self.model.layout.labels(tokens), clips.actions)
        targets = split_targets(clips, clean, self.accumulate)
        parts = zip(*(field.chunk(self.accumulate) for field in batch), targets, strict=True)
        return self._step("transformer", list(parts))[0]

    def _corrupt(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Replace dynamics tokens (B, L) of every other clip at random; also says which clips are clean, bool (B,).

        The share of a clip is drawn from 0 to `token_noise`. What a frame shows then follows less from the frame before
        and more from the context and the actions since, and a dream is less led astray by its own mistakes. What a
        decision earned can't be read from random tokens, so the heads learn from the clean clips alone.
        """
        layout, device = self.model.layout, tokens.device
        if not self.config.token_noise:
            return tokens, torch.ones(len(tokens), dtype=torch.bool, device=device)
        whole = (len(tokens) * parallel.processes(), tokens.shape[1])  # drawn for all, whoever asks
        share = self.config.token_noise * torch.rand(whole[0], 1, generator=self.generator, device=device)
        hit = torch.rand(whole, generator=self.generator, device=device) < share
        first, end = layout.first_dynamics_id, layout.first_dynamics_id + layout.dynamics_codes
        random = torch.randint(first, end, whole, generator=self.generator, device=device)
        clean = torch.arange(whole[0], device=device) % 2 == 1
        hit, random, clean = (drawn[parallel.local_slice(whole[0])] for drawn in (hit, random, clean))
        hit = hit & ~clean[:, None] & (tokens >= first) & (tokens < end)
        return torch.where(hit, random, tokens), clean

    def in_one_piece(self) -> "WorldModelLearner":
        """This learner, its model put together where processes keep shares of it: to look at and to save."""
        if not parallel.is_sharded(self.model):
            return self
        learner, model = copy.copy(self), self.model
        with torch.device("meta"):  # only its shape: weights drawn here would move the random stream of dropout
            learner.model = type(model)(
                model.tokenizer.config, model.transformer.config, model.action_dim, tuple(model.heads)
            )
        learner.model.load_state_dict(parallel.full_state(model.state_dict()), assign=True)
        for name, buffer in model.named_buffers():  # constants belong to no state and would stay on meta
            module, _, attribute = name.rpartition(".")
            setattr(learner.model.get_submodule(module), attribute, buffer)
        learner.model.eval()
        return learner

    # -- saving ------------------------------------------------------------------------------------------------------

    def weights(self) -> dict[str, Tensor]:
        """Every weight under a flat name."""
        return self.model.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """The model in the official layout, for `IVideoGPT.from_pretrained`."""
        self.model.save_pretrained(folder, dtype)

    def close(self) -> None:
        """It holds nothing."""

    def state(self) -> dict[str, Any]:
        """Everything but the model's weights; loads with `weights_only=True`."""
        return {
            "optimizers": {name: parallel.full_state(o.state_dict()) for name, o in self.optimizers.items()},
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

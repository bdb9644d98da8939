"""The control: a small convolutional network that predicts the next frame and what the action earned.

No tokens, no transformer, nothing drawn at random: is a video transformer needed? (iVideoGPT, arXiv 2405.15223, asks it
with another predictor in figure 21.) A U-Net reads the last K frames and the action; its frame is drawn over the last
one where a gate says that something changes. It learns on its own predictions, a few steps in a row, so that errors do
not grow as they would in a model that has only seen real frames.

    world = OneStepWorld(OneStep(config, action_dim=4), resolution=64, device=device)

Letters: B clips, K frames seen, T frames of a clip, A action, C channels.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack, cast

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from world_model.api import Clips, ClipSampler, Dream, FrameRollout, StartOptions, WeightsError, is_due
from world_model.files import read_json, read_tensors, read_text, reading
from world_model.heads import HEADS, Head
from world_model.metrics import moved, moving_errors
from world_model.precision import autocast_dtype
from world_model.schema import build, convert

KIND = "onestep"  # in config.json
INIT_GATE_LOGIT = -2.0  # logit of the gate of a network that knows nothing


@dataclass(frozen=True)
class OneStepLearning:
    """Sizes of the network and how it learns: configs/config.yaml says what each key does. K is `frames`."""

    width: Annotated[int, "[8, inf)"]
    frames: Annotated[int, "[1, inf)"]
    steps: Annotated[int, "[1, inf)"]
    batch_size: Annotated[int, "[1, inf)"]
    lr: Annotated[float, "(0, inf)"]
    max_grad_norm: Annotated[float, "(0, inf)"]
    mse_weight: Annotated[float, "[0, inf)"]
    motion_weight: Annotated[float, "[0, inf)"]
    reward_weight: Annotated[float, "[0, inf)"]
    precision: Literal["auto", "fp32", "bf16"]

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"width={self.width} must be even")

    @property
    def parameters(self) -> int:
        """A network of these sizes has more: its widest convolutions alone are counted."""
        return (4 * 9 * 16 + 9 * 32 + 16 * 8) * self.width**2


@dataclass(frozen=True)
class OneStepConfig(OneStepLearning):
    """The same beside an agent."""

    update_every_frames: Annotated[int, "[1, inf)"]


class Residual(nn.Module):
    """Two convolutions (B, C, H, W) -> the same, shifted by a condition (B, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.convs[0](F.silu(self.norms[0](x))) + condition[:, :, None, None]
        return x + self.convs[1](F.silu(self.norms[1](h)))


class OneStep(nn.Module):
    def __init__(self, config: OneStepLearning, action_dim: int, heads: Collection[str] = ("reward",)) -> None:
        super().__init__()
        self.config, self.action_dim = config, action_dim
        w = config.width
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in ((3 * config.frames, w), (w, 2 * w), (2 * w, 4 * w))
        )
        self.action = nn.Linear(action_dim, 4 * w)
        self.middle = nn.ModuleList(Residual(4 * w) for _ in range(2))
        # Twice the resolution by `pixel_shuffle`: four channels become a block of 2 x 2 pixels.
        self.up = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in ((4 * w, 8 * w), (4 * w, 4 * w)))
        self.last = nn.Conv2d(2 * w, w, 3, padding=1)
        self.out = nn.Conv2d(w, 4 * 4, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            cast(Tensor, self.out.bias).copy_(torch.tensor([0.5, 0.5, 0.5, INIT_GATE_LOGIT]).repeat_interleave(4))
        self.read = nn.LazyLinear(8 * w)
        self.heads = nn.ModuleDict({name: HEADS[name](8 * w) for name in heads})

    def forward(self, frames: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Last K frames float (B, K, 3, H, W) in [0, 1], actions (B, A) -> next frame (B, 3, H, W), raw heads (B,)."""
        x, skips = frames.flatten(1, 2).contiguous(memory_format=torch.channels_last) - 0.5, []
        for conv in self.down:
            x = F.silu(conv(x))
            skips.append(x)
        condition = self.action(action)
        x = x + condition[:, :, None, None]
        for block in self.middle:
            x = block(x, condition)
        read = F.silu(self.read(x.flatten(1)))
        raw = {name: cast(Head, head)(read) for name, head in self.heads.items()}
        for conv, skip in zip(self.up, (skips[1], skips[0]), strict=True):
            x = torch.cat([F.silu(F.pixel_shuffle(conv(x), 2)), skip], dim=1)
        x = self.out(F.silu(self.last(x)))
        image, gate = F.pixel_shuffle(x.float(), 2).split([3, 1], dim=1)
        return torch.lerp(frames[:, -1], image, gate.sigmoid()), raw

    @property
    def resolution(self) -> int:
        """Height and width of a frame, pixels; of a model that has seen one or was loaded."""
        return 8 * math.isqrt(self.read.weight.shape[1] // (4 * self.config.width))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and model.safetensors, the weights as `dtype`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {field.name: getattr(self.config, field.name) for field in fields(OneStepLearning)}
        about = {"kind": KIND} | config | {"action_dim": self.action_dim, "heads": list(self.heads)}
        (folder / "config.json").write_text(json.dumps(about, indent=1))
        (folder / "model.safetensors").write_bytes(
            safetensors.torch.save({name: weight.to(dtype) for name, weight in self.state_dict().items()})
        )

    def load_pretrained(self, folder: str | Path) -> None:
        """Take over the weights in `folder`, but for the action's where actions have another size.

        A head that was not saved there stays as it is, one too many is left out.
        Raises WeightsError: they are missing, damaged or of other sizes.
        """
        path, own = Path(folder) / "model.safetensors", self.state_dict()
        with reading(path, WeightsError):
            saved = read_tensors(path)
            if "action.weight" in saved and saved["action.weight"].shape != own["action.weight"].shape:
                saved |= {name: own[name] for name in ("action.weight", "action.bias")}
            kept = {name: value for name, value in own.items() if name.startswith("heads.")}
            self.load_state_dict(
                kept | {name: value for name, value in saved.items() if name in own or not name.startswith("heads.")}
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, precision: str | None = None) -> OneStep:
        """The model that was saved in `folder`, to be computed in `precision` (None: the one that it learned in).

        Raises WeightsError: it is missing or damaged.
        """
        path = Path(folder) / "config.json"
        with reading(path, WeightsError):
            stored = read_json(path)
            stored["precision"] = precision or stored["precision"]
            config = build(OneStepLearning, {field.name: stored[field.name] for field in fields(OneStepLearning)})
            weights = Path(folder) / "model.safetensors"
            if weights.is_file() and config.parameters > weights.stat().st_size:
                raise ValueError(f"it has {config.parameters:,} parameters or more, {weights.name} fewer")
            action_dim = convert(Annotated[int, "[0, 10000]"], stored["action_dim"], "action_dim")
            model = cls(config, action_dim, stored["heads"])
        model.load_pretrained(folder)
        return model


def holds_onestep(folder: str | Path) -> bool:
    """Whether a one-step model was saved in `folder`."""
    path = Path(folder) / "config.json"
    with reading(path, WeightsError):
        return path.exists() and f'"kind": "{KIND}"' in read_text(path)


class OneStepWorld:
    """The network with its learner (`world_model.api.WorldModel`).

    Args:
        resolution: height and width of a frame, pixels.
        action_repeat: frames of a decision.
        update_every_frames: how often `sample` finds an update due.
    """

    def __init__(
        self,
        model: OneStep,
        resolution: int,
        device: torch.device,
        action_repeat: int = 1,
        update_every_frames: int = 1,
    ) -> None:
        self._action_repeat, self._update_every_frames = action_repeat, update_every_frames
        self.model, self.config, self.device = model.to(device), model.config, device
        self.context_length = model.config.frames
        self.heads = tuple(model.heads)
        self.dtype = autocast_dtype(model.config.precision, device)
        shape = (1, model.config.frames, 3, resolution, resolution)
        model(torch.zeros(shape, device=device), torch.zeros(1, model.action_dim, device=device))  # sizes `read`
        self._still = threading.RLock()
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=model.config.lr, weight_decay=0.0, fused=True)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        with self._still:
            yield

    @torch.no_grad()
    def _predict(self, frames: Tensor, action: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with self._still, self.autocast():
            image, raw = self.model(frames[:, -self.context_length :], action)
        values = {name: cast(Head, head).value(raw[name]) for name, head in self.model.heads.items()}
        return image.clamp(0, 1), values

    def start(self, context: Tensor, *, horizon: int | None = None, **options: Unpack[StartOptions]) -> FrameRollout:
        if context.shape[1] < self.context_length:
            raise ValueError(f"a dream needs {self.context_length} context frames, got {context.shape[1]}")
        return FrameRollout(context, self._predict)

    def sample(self, clips: ClipSampler, frame: int | None = None) -> tuple[Clips] | None:
        if frame is not None and not is_due(frame, self._update_every_frames, self._action_repeat):
            return None
        return (clips.clips(self.config.batch_size, self.context_length + self.config.steps),)

    def update(self, clips: Clips, rate: float = 1.0) -> dict[str, Tensor]:
        """One gradient step on clips (B, K + steps, ...), at `rate` times the learning rate."""
        config, known = self.config, self.context_length
        targets = clips.targets()
        frames, raw = clips.frames[:, :known], list[dict[str, Tensor]]()
        with self._still:
            with self.autocast():
                for t in range(known - 1, clips.frames.shape[1] - 1):
                    image, heads = self.model(frames[:, -known:], clips.actions[:, t])
                    frames = torch.cat([frames, image[:, None]], dim=1)
                    raw.append(heads)
            predicted, true = frames[:, known:], clips.frames[:, known:]
            error = (predicted - true).abs() + config.mse_weight * (predicted - true).square()
            moving = moved(true, clips.frames[:, known - 1])
            terms = {
                "pixel": error.mean(),
                "motion": config.motion_weight * (error * moving).sum() / (3 * moving.sum() + 1),
            }
            for name, head in self.model.heads.items():
                if name in targets:
                    outputs = torch.stack([heads[name] for heads in raw], dim=1)
                    loss = cast(Head, head).loss(outputs, targets[name][:, known - 1 : -1])
                    terms[name] = loss * (config.reward_weight if name == "reward" else 1.0)
            loss = torch.stack(list(terms.values())).sum()
            for group in self._optimizer.param_groups:
                group["lr"] = rate * config.lr
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
            self._optimizer.step()
        metrics = {f"onestep_{name}_loss": term.detach() for name, term in (terms | {"total": loss}).items()}
        return metrics | {"onestep_grad_norm": norm}

    @torch.no_grad()
    def diagnose(self, clips: Clips, dream: Dream) -> dict[str, float]:
        """The error of a single step from real frames, on pixels that move."""
        known, frames = self.context_length, clips.frames
        windows = [frames[:, t - known : t] for t in range(known, frames.shape[1])]
        steps = [self._predict(w, clips.actions[:, t + known - 1])[0] for t, w in enumerate(windows)]
        predicted, true = torch.cat(steps)[:, None], torch.cat(frames[:, known:].unbind(1))[:, None]
        errors = moving_errors(predicted, true, torch.cat([w[:, -1] for w in windows]))
        return {"one_step_error_ratio": errors.ratio}

    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights)

    def state(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        self.model.save_pretrained(folder, dtype)

    def close(self) -> None:
        """It holds nothing."""

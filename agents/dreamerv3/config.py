"""Settings of DreamerV3 and the model sizes of its authors.

Names and values follow `dreamerv3/configs.yaml` of the official code (danijar/dreamerv3 at e3f0224).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from agents.api import InvalidConfig

PRECISIONS = ("auto", "fp32", "bf16")


class Size(NamedTuple):
    """Widths of the networks."""

    deter: int  # units of the recurrent state
    hidden: int  # units of the layers around it
    stoch: int  # categorical latents
    classes: int  # of each latent
    depth: int  # channels of the convolutions, times 2, 3, 4, 4
    units: int  # of the heads' layers
    blocks: int  # of the block-diagonal recurrent layers, and of the decoder's first


SIZES = {
    # for tests and small machines; ours
    "smoke": Size(deter=32, hidden=16, stoch=4, classes=4, depth=2, units=16, blocks=4),
    "small": Size(deter=512, hidden=128, stoch=32, classes=16, depth=4, units=128, blocks=8),
    # the official ones
    "size1m": Size(deter=512, hidden=64, stoch=32, classes=4, depth=4, units=64, blocks=8),
    "size12m": Size(deter=2048, hidden=256, stoch=32, classes=16, depth=16, units=256, blocks=8),
    "size25m": Size(deter=3072, hidden=384, stoch=32, classes=24, depth=24, units=384, blocks=8),
    "size50m": Size(deter=4096, hidden=512, stoch=32, classes=32, depth=32, units=512, blocks=8),
    "size100m": Size(deter=6144, hidden=768, stoch=32, classes=48, depth=48, units=768, blocks=8),
    "size200m": Size(deter=8192, hidden=1024, stoch=32, classes=64, depth=64, units=1024, blocks=8),
}


@dataclasses.dataclass(frozen=True)
class DreamerV3Config:
    """Settings of the agent; their values live in `configs/`.

    Raises:
        InvalidConfig: a value that cannot be used.
    """

    size: str  # a key of SIZES
    # learning
    batch_size: int  # windows of an update
    batch_length: int  # steps of a window that are learned from
    train_ratio: float  # replayed steps for each decision in the environment
    lr: float
    warmup_updates: int  # the learning rate rises from 0 over this many updates
    agc: float  # adaptive gradient clipping: largest norm of a gradient as a share of its weight's; 0 is off
    beta1: float  # momentum
    beta2: float  # decay of the mean square
    eps: float
    # world model
    unimix: float  # share of the uniform distribution in every categorical
    free_nats: float
    dyn_scale: float  # weight of the loss that moves the prior to the posterior
    rep_scale: float  # weight of the loss that moves the posterior to the prior
    # behaviour
    imagination_length: int
    horizon: int  # decisions; the discount is 1 - 1 / horizon
    return_lambda: float
    entropy: float  # weight of the actor's entropy
    min_std: float  # of the actor
    max_std: float
    slow_rate: float  # of the slow critic's exponential average
    slow_scale: float  # weight of the loss that keeps the critic near the slow one
    replay_value_scale: float  # weight of the critic's loss on replayed steps
    return_rate: float  # of the exponential average of the returns' percentiles
    return_limit: float  # returns are never divided by less
    bins: int  # of the reward's and the value's distribution
    precision: str  # "auto": bf16 on a CUDA GPU and on a CPU that computes with it, fp32 elsewhere

    def __post_init__(self) -> None:
        for name, known in (("size", tuple(SIZES)), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InvalidConfig(f"{name}={getattr(self, name)!r} is unknown: choose {', '.join(known)}")
        positive = ("batch_size", "train_ratio", "lr", "eps", "imagination_length", "min_std", "return_limit")
        not_negative = ("warmup_updates", "agc", "free_nats", "dyn_scale", "rep_scale", "entropy", "slow_scale")
        shares = ("beta1", "beta2", "unimix", "return_lambda", "slow_rate", "return_rate")
        for names, low, high in (
            (positive, 1e-30, float("inf")),
            ((*not_negative, "replay_value_scale"), 0, float("inf")),
            (shares, 0, 1),
            (("batch_length", "horizon"), 2, float("inf")),
        ):
            for name in names:
                if not low <= getattr(self, name) <= high:
                    limits = f"between {low} and {high}" if high == 1 else f"at least {low}"
                    raise InvalidConfig(f"{name}={getattr(self, name)!r} must be {limits}")
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:
                raise InvalidConfig(f"{name}=1 would never learn: it must be less")
        if self.max_std < self.min_std:
            raise InvalidConfig(f"max_std={self.max_std} must be at least min_std={self.min_std}")
        if self.bins < 3 or self.bins % 2 == 0:
            raise InvalidConfig(f"bins={self.bins} must be an odd number from 3 on, so that one of them is zero")

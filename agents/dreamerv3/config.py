"""Settings of DreamerV3 and the model sizes of its authors.

Names and values follow `dreamerv3/configs.yaml` of the official code (danijar/dreamerv3 at e3f0224).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, NamedTuple

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
    """Settings of the agent; their values live in `configs/`, where ranges are checked.

    Raises:
        InvalidConfig: a name that is unknown, or values that do not go together.
    """

    size: str  # a key of SIZES
    # learning
    batch_size: Annotated[int, "[1, inf)"]  # windows of an update
    batch_length: Annotated[int, "[2, inf)"]  # steps of a window that are learned from
    train_ratio: Annotated[float, "(0, inf)"]  # replayed steps for each decision in the environment
    lr: Annotated[float, "(0, inf)"]
    warmup_updates: Annotated[int, "[0, inf)"]  # the learning rate rises from 0 over this many updates
    # adaptive gradient clipping: largest norm of a gradient as a share of its weight's; 0 is off
    agc: Annotated[float, "[0, inf)"]
    beta1: Annotated[float, "[0, 1)"]  # momentum
    beta2: Annotated[float, "[0, 1)"]  # decay of the mean square
    eps: Annotated[float, "(0, inf)"]
    # world model
    unimix: Annotated[float, "[0, 1]"]  # share of the uniform distribution in every categorical
    free_nats: Annotated[float, "[0, inf)"]
    dyn_scale: Annotated[float, "[0, inf)"]  # weight of the loss that moves the prior to the posterior
    rep_scale: Annotated[float, "[0, inf)"]  # weight of the loss that moves the posterior to the prior
    # behaviour
    imagination_length: Annotated[int, "[1, inf)"]
    horizon: Annotated[int, "[2, inf)"]  # decisions; the discount is 1 - 1 / horizon
    return_lambda: Annotated[float, "[0, 1]"]
    entropy: Annotated[float, "[0, inf)"]  # weight of the actor's entropy
    min_std: Annotated[float, "(0, inf)"]  # of the actor
    max_std: Annotated[float, "(0, inf)"]
    slow_rate: Annotated[float, "[0, 1]"]  # of the slow critic's exponential average
    slow_scale: Annotated[float, "[0, inf)"]  # weight of the loss that keeps the critic near the slow one
    replay_value_scale: Annotated[float, "[0, inf)"]  # weight of the critic's loss on replayed steps
    return_rate: Annotated[float, "[0, 1]"]  # of the exponential average of the returns' percentiles
    return_limit: Annotated[float, "(0, inf)"]  # returns are never divided by less
    bins: Annotated[int, "[3, inf)"]  # of the reward's and the value's distribution
    precision: str  # fp32 or bf16; whoever builds the agent decides what "auto" is

    def __post_init__(self) -> None:
        for name, known in (("size", tuple(SIZES)), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise InvalidConfig(f"{name}={getattr(self, name)!r} is unknown: choose {', '.join(known)}")
        if self.max_std < self.min_std:
            raise InvalidConfig(f"max_std={self.max_std} must be at least min_std={self.min_std}")
        if self.bins % 2 == 0:
            raise InvalidConfig(f"bins={self.bins} must be an odd number, so that one of them is zero")

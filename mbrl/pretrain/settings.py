"""Every key of `make pretrain` with its type; the values stand in configs/pretrain.yaml."""

import dataclasses
from collections.abc import Iterable
from typing import Annotated, Literal

from mbrl.experiment.settings import Count, Device, Folder, Fraction, Name, Positive, Seed, Threads, UserError
from world_model.data.augmentation import AugmentationConfig
from world_model.ivideogpt.adversary import DiscriminatorConfig
from world_model.ivideogpt.config import LearnerConfig
from world_model.onestep import OneStepLearning

# Keys that a restart may change: more updates, for one.
FREE_KEYS = frozenset(
    {"out", "tokenizer_updates", "transformer_updates", "checkpoint_every_updates", "device", "threads"}
    | {"onestep.updates", "onestep.minutes"}
    | {"accumulate", "sharded"}  # these change the last bits alone
)
# What both kinds read; of the others, a section is that of kind=onestep and the rest is iVideoGPT's.
SHARED_KEYS = frozenset(
    "kind data unseen episodes out rewards validate_every_updates checkpoint_every_updates held_out_every horizon seed "
    "device threads".split()
)


@dataclasses.dataclass(frozen=True)
class OneStepTraining(OneStepLearning):
    """The one-step predictor, and how long it learns."""

    updates: Positive
    minutes: Annotated[float, "(0, inf)"] | None
    final_lr: Fraction


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    kind: Literal["ivideogpt", "onestep"]
    data: Folder
    unseen: Folder
    mixture: Name
    episodes: Positive | None  # of the training part; None takes all
    goal: bool
    out: Folder
    schedule: str  # a file of configs/schedules with values for these keys, or "none"
    preset: str
    tokenizer: str
    transformer: str
    context_length: Positive | None
    actions: bool
    rewards: bool
    start_from: Folder
    stage: Literal["tokenizer", "transformer", "both"]
    tokenizer_updates: Count
    transformer_updates: Count
    validate_every_updates: Positive
    checkpoint_every_updates: Positive
    cached_clips: Count  # 0 tokenizes every batch anew
    held_out_every: Positive
    accumulate: Positive  # parts that each process splits its share of a batch into
    sharded: bool
    horizon: Positive
    seed: Seed
    device: Device
    threads: Threads
    augmentation: AugmentationConfig
    discriminator: DiscriminatorConfig
    learner: LearnerConfig
    onestep: OneStepTraining


def of_another_kind(key: str, kind: str) -> bool:
    """Whether a pre-training of `kind` does not read `key`, such as `onestep.lr`."""
    section = key.split(".")[0]
    return section not in SHARED_KEYS and (section == "onestep") != (kind == "onestep")


def check_keys(typed: Iterable[str], kind: str) -> None:
    """Raises UserError if one of the keys that were typed is not read."""
    if unread := sorted(key for key in typed if of_another_kind(key, kind)):
        raise UserError(f"kind={kind} does not read {unread[0]}; leave it out, or choose the other kind")

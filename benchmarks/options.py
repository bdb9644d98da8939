"""The keys of `make bench`: those of configs/bench.yaml here, all others are a run's."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

from mbrl.experiment.settings import Positive, Range, Settings, load, load_plain


@dataclasses.dataclass(frozen=True)
class Batches:
    dreams: Positive  # rollouts at a time
    clips: Positive  # of an update of the world model


@dataclasses.dataclass(frozen=True)
class Options:
    peer: str
    peer_python: str
    out: str
    name: str
    repeats: Positive
    at_least_s: Annotated[float, Range(0.0)]
    lines: tuple[str, ...]
    precisions: tuple[Literal["fp32", "bf16"], ...]
    weights: str
    episodes: Positive
    cpu: Batches
    cuda: Batches


def read(overrides: Sequence[str]) -> tuple[Options, Settings, list[str]]:
    """The options, the settings of the run that is measured, and the overrides of those settings.

    Beside a peer the sizes are the paper's unless the overrides say otherwise: the official code knows no others.

    Raises:
        UserError: a key or a value that does not exist.
    """
    own = {field.name for field in dataclasses.fields(Options)}
    of_bench = [override for override in overrides if override.split("=")[0].split(".")[0] in own]
    of_run = [override for override in overrides if override not in of_bench]
    options = load_plain(Options, "bench", of_bench)
    if options.peer != "none" and not any(override.startswith("preset=") for override in of_run):
        of_run = ["preset=paper", *of_run]
    return options, load(of_run), of_run

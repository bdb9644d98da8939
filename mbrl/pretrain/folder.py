"""What the pre-trainings of all kinds share: what their folder says of them, and the clips they are judged by."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mbrl.experiment.logger import Logger
from mbrl.experiment.provenance import provenance
from mbrl.experiment.run import PROVENANCE, check_same_config, stream_seed
from mbrl.experiment.settings import flatten, to_dict
from mbrl.experiment.stored_config import write_config, write_text
from mbrl.experiment.video import encode_gif
from mbrl.pretrain.settings import FREE_KEYS, PretrainSettings, of_another_kind
from mbrl.world.validate import validate
from world_model import Episode, WorldModel
from world_model.data import ClipDataset

LOG_UPDATES = 50
VALIDATED = 64  # held-out episodes that a validation draws its clips from


def check_same(folder: Path, settings: PretrainSettings) -> None:
    """Raises UserError if the folder holds a pre-training of other settings."""
    keys = {key for key in flatten(to_dict(settings)) if not of_another_kind(key, settings.kind)}
    check_same_config(folder, settings, keys - FREE_KEYS, added={"kind": "ivideogpt"})


def note_start(folder: Path, settings: PretrainSettings) -> None:
    """Keep every key, the commit and the versions."""
    write_config(folder, to_dict(settings))
    write_text(folder / PROVENANCE, json.dumps(provenance(), indent=1) + "\n")


def held_out_episodes(settings: PretrainSettings) -> dict[str, list[Episode]]:
    """What to validate on: episodes of `data` that are held out and, where there is one, of the `unseen` recording."""
    s = settings
    parts = {"held_out": ClipDataset(s.data, "held_out", s.held_out_every)}
    if s.unseen != "none":
        parts["unseen"] = ClipDataset(s.unseen)
    return {name: _spread(data) for name, data in parts.items()}


def _spread(data: ClipDataset) -> list[Episode]:
    """At most `VALIDATED` episodes, evenly over all of them."""
    chosen = np.unique(np.linspace(0, data.num_episodes - 1, VALIDATED).astype(int))
    return [data.episode(int(index)) for index in chosen]


def log_validation(
    logger: Logger,
    update: int,
    world: WorldModel,
    episodes: Mapping[str, Sequence[Episode]],
    settings: PretrainSettings,
) -> None:
    """Dreams of clips of each part: metrics under `<part>/`, and a video."""
    s = settings
    for part, some in episodes.items():
        metrics, grid = validate(world, some, s.horizon, stream_seed(s.seed, "validation"), goal=s.goal)
        logger.scalars(update, {f"{part}/{name}": value for name, value in metrics.items()})
        if grid is not None:
            logger.video(f"{part}/dream", update, encode_gif(grid, fps=3))

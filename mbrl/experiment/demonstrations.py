"""Demonstrations in a folder, driven by a person (`make play`) or by whatever else plays the task.

    <folder>/000000.npz, ...       episodes, as in a run's `replay/`
    <folder>/demonstrations.json   the keys that they were played with

A run takes them with `demonstrations=<folder>`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mbrl.experiment.episodes import EpisodeStore
from mbrl.experiment.settings import Settings, UserError
from mbrl.experiment.stored_config import write_text
from mbrl.replay import Episode
from world_model.files import READ_ERRORS, read_json

ABOUT = "demonstrations.json"
SAME = ("task", "action_repeat", "success_bonus", "camera", "image_size", "render_quality")  # else it is another task


def keep(folder: Path, episode: Episode, settings: Settings) -> Path:
    """Add an episode; returns its file. Raises UserError: the folder holds those of another task."""
    _check(folder, settings, f"{folder} cannot take it")
    store = EpisodeStore(folder)
    number = max(store.indices(), default=-1) + 1
    store.save(number, episode)
    write_text(folder / ABOUT, json.dumps(_about(settings), indent=1) + "\n")
    return store.path(number)


def count(folder: Path) -> int:
    return len(EpisodeStore(folder).indices()) if folder.is_dir() else 0


def load(folder: Path, settings: Settings, episode_decisions: int) -> list[Episode]:
    """All that can be read. Raises UserError: there are none, or they do not fit the run of these settings."""
    key = f"demonstrations={folder}"
    if not folder.is_dir():
        raise UserError(f"{key}: there is no such folder; make play keeps what you drive in one")
    _check(folder, settings, key)
    store = EpisodeStore(folder)
    episodes = list(store.load(store.indices()))
    if not episodes:
        raise UserError(f"{key}: there is no episode in it; make play keeps what you drive in one")
    longest = max(len(episode.actions) for episode in episodes)
    if longest > episode_decisions:
        raise UserError(f"{key}: one has {longest} decisions, an episode of this run {episode_decisions}")
    return episodes


def _about(settings: Settings) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    return {key: values[key] for key in SAME}


def _check(folder: Path, settings: Settings, what: str) -> None:
    path = folder / ABOUT
    if not path.exists() and not path.is_symlink():
        return
    try:
        before = read_json(path)
        if not isinstance(before, dict):
            raise TypeError("no object of keys")
    except READ_ERRORS as error:
        raise UserError(f"{what}: {path} cannot be read; remove it to take its episodes as they are") from error
    for key, value in _about(settings).items():
        if before.get(key, value) != value:
            raise UserError(f"{what}: it was driven with {key}={before[key]}, not {value}")

"""The config of a run on disk: `config.yaml`, and the copy of it that every checkpoint keeps.

The copy is what counts where config.yaml is missing, damaged or changed: a checkpoint never goes on under another
config than its own.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mbrl.experiment import checkpoints
from mbrl.experiment.identity import FREE_KEYS, with_defaults
from mbrl.experiment.settings import Settings, UserError, build, first_line, flatten
from world_model.files import read_text, reading

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
STATE = "run.json"  # the part of a checkpoint that belongs to the run itself
START_OVER = "to start over, remove the run folder or set variant=<name>"
DEEPEST = 20  # sections in sections of a config
# In C it is ten times as quick, and there are many runs.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def stored_config(folder: Path) -> dict[str, Any] | None:
    """The config of the run in this folder, with the keys of the version that wrote it; None where there is none.

    Raises UserError if config.yaml cannot be read and no checkpoint has a copy.
    """
    path, state = folder / CONFIG, checkpoints.peek(folder / CHECKPOINTS, STATE)
    kept = state.get("config") if isinstance(state, dict) else None
    if not isinstance(kept, dict):
        return read_config(path) if path.exists() else None
    try:
        config = read_config(path)
        now = with_defaults(config)
        build(Settings, now)
    except UserError:
        return dict(kept)
    before, after = flatten(with_defaults(kept)), flatten(now)
    # What a restart may change is written at once, and copied at its first checkpoint.
    changed = [key for key in before if before[key] != after[key] and key not in FREE_KEYS | {"num_train_frames"}]
    return dict(kept) if changed else config


def restore_config(folder: Path) -> None:
    """Write config.yaml again where it isn't the run's `stored_config`, and say so."""
    config, path = stored_config(folder), folder / CONFIG
    if config is None:
        return
    try:
        same = read_config(path) == config
    except UserError:
        same = False
    if not same:
        what = "damaged or changed" if path.exists() else "missing"
        print(f"{path} was {what}, and is again what the newest checkpoint was saved with", file=sys.stderr)
        write_config(folder, config)


def read_config(path: Path) -> dict[str, Any]:
    """The nested values of a config.yaml. Raises UserError if there is none or it is damaged."""
    with reading(path, advice=f"put it back; {START_OVER}"):
        return read_yaml(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """The sections and values of a file as they stand there: `${...}` is text. Raises one of READ_ERRORS.

    No section may be written once and meant many times: a few lines of such would be more than the memory holds.
    """
    text, depth = read_text(path), 0
    try:
        for event in yaml.parse(text, LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise ValueError("nested too deeply")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"it has an alias, *{event.anchor}")
        config = yaml.load(text, LOADER)
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from error
    if not isinstance(config, dict):
        raise ValueError("it holds no keys")
    return {str(key): value for key, value in config.items()}


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    write_text(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

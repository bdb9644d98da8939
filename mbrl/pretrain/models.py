"""World models for pre-training: sizes by name, a checkpoint to start from, or both.

    sizes(TransformerConfig, "medium", preset="small")
    make_model("auto", "auto", preset="small", start_from="none", action_dim=4, context_length=None, rewards=True)

The names stand in configs/models.yaml.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mbrl.build import find_pretrained
from mbrl.experiment.settings import CONFIG_DIR, Positive, UserError, build, convert, load, nearest
from world_model import IVideoGPT, TokenizerConfig, TransformerConfig
from world_model.files import read_json, reading
from world_model.ivideogpt import weights

FILE = "models.yaml"
PRETRAINED_ON = "pretraining.json"  # beside the weights of a model that was pre-trained here
HELD_OUT_EVERY = 20  # of weights that do not say, such as the shipped ones: the value in configs/pretrain.yaml
KINDS = {TokenizerConfig: "tokenizer", TransformerConfig: "transformer"}
Config = TypeVar("Config", TokenizerConfig, TransformerConfig)


def sizes(cls: type[Config], name: str, preset: str) -> Config:
    """The sizes that `tokenizer=<name>` or `transformer=<name>` means; auto is the preset's own. Raises UserError."""
    kind = KINDS[cls]
    changes: dict[str, Any] = {}
    if name != "auto":
        known = _named()[f"{kind}s"]
        if name not in known:
            raise UserError(f"{kind}={name}: there is none of this name{nearest(name, known, f'configs/{FILE}')}")
        changes = dict(known[name])
        preset = changes.pop("preset")
    values = dataclasses.asdict(getattr(load([f"preset={preset}", "device=cpu"]).world_model, kind))
    return build(cls, values | changes, f"{name}.")


@functools.cache
def _named() -> dict[str, Any]:
    return yaml.safe_load((CONFIG_DIR / FILE).read_text())


def make_model(
    tokenizer: str,
    transformer: str,
    preset: str,
    start_from: str,
    action_dim: int,
    context_length: int | None,
    rewards: bool,
) -> IVideoGPT:
    """A model on the CPU.

    From `start_from` come the tokenizer and, where `transformer` is auto, the transformer; one that is named starts at
    random. Weights for the actions of another robot start at zero.

    Args:
        start_from: a folder in the official layout, a hub name, or none.
        context_length: K; None is the checkpoint's or the preset's. A checkpoint's can only be shortened.
        rewards: whether the model has a reward head.
    Raises:
        UserError, WeightsError: a name or sizes that do not exist or do not go together.
    """
    if start_from == "none":
        of_tokenizer = sizes(TokenizerConfig, tokenizer, preset)
        if context_length is not None:
            of_tokenizer = dataclasses.replace(of_tokenizer, context_length=context_length)
        return _model(of_tokenizer, sizes(TransformerConfig, transformer, preset), action_dim, rewards)
    if tokenizer != "auto":
        raise UserError(f"tokenizer={tokenizer}: start_from={start_from} has one; leave one of the two keys out")
    folder = find_pretrained(start_from, "start_from")
    if transformer == "auto":
        return IVideoGPT.from_pretrained(folder, action_dim, context_length, new_actions=True, heads=heads_of(rewards))
    of_tokenizer, _ = weights.read_configs(folder, context_length)
    model = _model(of_tokenizer, sizes(TransformerConfig, transformer, preset), action_dim, rewards)
    weights.load_tokenizer(model, folder)
    return model


def heads_of(rewards: bool) -> tuple[str, ...]:
    """The heads of a model that is pre-trained with or without rewards."""
    return ("reward",) if rewards else ()


def _model(tokenizer: TokenizerConfig, transformer: TransformerConfig, action_dim: int, rewards: bool) -> IVideoGPT:
    try:
        return IVideoGPT(tokenizer, transformer, action_dim, heads_of(rewards))
    except ValueError as error:  # sizes that do not go together
        raise UserError(f"world_model: {error}") from error


def note_held_out(folder: Path, data: str, every: int) -> None:
    """Keep with the weights in `folder` which episodes of `data` they have not seen."""
    note = {"data": Path(data).resolve().name, "held_out_every": every}
    (folder / PRETRAINED_ON).write_text(json.dumps(note, indent=1) + "\n")


def held_out_every(folder: Path, data: str, asked: int | None = None) -> int:
    """One in how many episodes of `data` is held out, for a model that was trained as `folder` says.

    Raises UserError: `asked` differs, and the model was trained on data of this name, so it would be tested on training
    episodes.
    """
    file = folder / PRETRAINED_ON
    if not file.exists():
        return asked or HELD_OUT_EVERY
    with reading(file):
        note = read_json(file)
        trained_on, stored = str(note["data"]), convert(Positive, note["held_out_every"], "held_out_every")
    if asked not in (None, stored) and Path(data).resolve().name == trained_on:
        raise UserError(
            f"held_out_every={asked}: {folder} was trained on {trained_on} with held_out_every={stored} and has seen "
            "episodes that this would hold out; use the same value"
        )
    return asked or stored

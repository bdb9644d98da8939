"""What a run is made of: names, types and ranges here, values in `configs/`.

    settings = load(["task=coffee-push", "preset=small", "drqv2.lr=3e-4"])

`configs/config.yaml` names every key once. Four of them also choose a file, later files winning:
protocol, then task, then preset, then agent; what the user types wins over all of them. Hydra composes, and
its reach ends here: the rest of the project sees `Settings`, plain frozen data that nothing writes into.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import envs
from agents import DreamerV3Config, DrQv2Config
from world_model import TokenizerConfig, TransformerConfig
from world_model.learner import LearnerConfig

T = TypeVar("T")
CONFIG_DIR = Path(__file__).resolve().parent.parent / "configs"


class UserError(ValueError):
    """Something the user can put right, said in one line: what is wrong and what to do."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number, written into a field's type with `Annotated`."""

    low: float
    high: float = math.inf


Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
Fraction = Annotated[float, Range(0.0, 1.0)]
Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclasses.dataclass(frozen=True)
class WorldModelSettings:
    pretrained: str  # a folder in the official layout, a hub name, or "none"
    tokenizer: TokenizerConfig
    transformer: TransformerConfig
    learner: LearnerConfig


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every key of a run. Time is in frames (simulator steps) where the name ends in `_frames`."""

    # what is trained, and where it goes
    task: str
    agent: str
    preset: str
    protocol: str
    seed: Count
    variant: str  # told apart in the run folder: runs/<task>/<agent>-<variant>/<seed>
    run_root: str
    # the machine
    device: Device
    threads: Count  # 0 leaves torch's choice
    # budget
    num_train_frames: Positive
    num_seed_frames: Count  # frames of the random policy first
    eval_every_frames: Positive
    num_eval_episodes: Positive
    checkpoint_every_frames: Positive
    log_every_frames: Positive
    # environment
    action_repeat: Positive
    frame_stack: Positive
    image_size: Positive
    camera: str
    render_quality: Literal["fast", "paper"]
    episode_frames: Positive | None  # None is the suite's own length
    success_bonus: Annotated[float, Range(0.0)]
    demonstrations: Count  # successful scripted episodes put into the replay first
    # replay
    nstep: Positive
    discount: Fraction
    batch_size: Positive
    replay_buffer_frames: Positive
    replay_memory_gb: Annotated[float, Range(0.0)]  # larger buffers are memory-mapped files
    agent_updates_per_decision: Annotated[float, Range(0.0)]
    # imagination
    real_ratio: Fraction  # share of real transitions in an agent batch; 1 never dreams again
    imagined_buffer_frames: Positive
    initial_model_updates: Count
    initial_rollouts: Count
    rollout_every_frames: Positive
    rollout_batch: Positive
    rollout_horizon: Positive
    rollout_temperature: Annotated[float, Range(0.0)]
    rollout_top_k: Positive
    update_transformer_every_frames: Positive
    update_tokenizer_every_frames: Positive
    # what is shown
    video: bool
    wandb: bool
    # parts
    drqv2: DrQv2Config
    dreamerv3: DreamerV3Config
    world_model: WorldModelSettings

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]*", self.variant):
            raise UserError(f"variant={self.variant}: only letters, digits, '_', '-' and '.', it names a folder")
        seed_frames, all_frames = self.num_seed_frames, self.num_train_frames
        if seed_frames >= all_frames:
            raise UserError(f"num_train_frames={all_frames} must be more than num_seed_frames={seed_frames}")


def load(overrides: Sequence[str] = ()) -> Settings:
    """Compose the files and the user's `key=value` words. Raises UserError, one line, on anything wrong."""
    words = _parse(overrides)
    base = flatten(_container(OmegaConf.load(CONFIG_DIR / "config.yaml")))
    known = [key for key in base if not key.startswith("defaults")]
    for word in words:
        _check_key(word.key_or_group, known)
    chosen = base | {word.key_or_group: word.value() for word in words}

    try:
        task = envs.canonical(str(chosen["task"]))
    except envs.UnknownTask as error:
        raise UserError(str(error)) from error
    # What a run stores is the device it began on, so that no restart changes it unnoticed.
    device = pick_device(_convert(Device, chosen["device"], "device")).type
    preset = str(chosen["preset"])
    if preset == "auto":
        preset = "paper" if device == "cuda" else "small"
    own_files = [f"tasks={name}" for name in (task, envs.suite_of(task).name) if name in _names("tasks")]
    files = {
        "protocols": _file("protocol", "protocols", str(chosen["protocol"])),
        "presets": _file("preset", "presets", preset),
        "agents": _file("agent", "agents", str(chosen["agent"])),
    }
    groups = [f"{group}={name}" for group, name in files.items()] + (own_files[:1] or ["~tasks"])
    values = _compose("config", groups, words)
    settings = build(Settings, values | {"task": task, "preset": preset, "device": device})
    _check_sizes(settings.world_model.pretrained, words)
    return settings


def load_plain(cls: type[T], config: str, overrides: Sequence[str] = ()) -> T:
    """As `load`, for a command whose keys all stand in one file, `configs/<config>.yaml`."""
    words = _parse(overrides)
    base = flatten(_container(OmegaConf.load(CONFIG_DIR / f"{config}.yaml")))
    base.pop("defaults", None)
    for word in words:
        _check_key(word.key_or_group, list(base), f"configs/{config}.yaml")
    # Where there is such a key, it chooses a file that is laid over this one.
    schedule = str((base | {word.key_or_group: word.value() for word in words}).get("schedule", "none"))
    groups = [] if schedule == "none" else [f"schedules={_file('schedule', 'schedules', schedule)}"]
    return build(cls, _compose(config, groups, words))


def _compose(config: str, groups: Sequence[str], words: Sequence[Override]) -> dict[str, Any]:
    """Hydra's composition of `configs/<config>.yaml`, chosen group files and the user's words."""
    try:
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            return _container(compose(config, overrides=[*groups, *(word.input_line or "" for word in words)]))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the settings do not compose: {_first_line(error)}") from error


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """The keys that the user's words give a value to."""
    return {word.key_or_group for word in _parse(overrides)}


def pick_device(name: str) -> torch.device:
    """The torch device that `device=<name>` means on this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this torch sees no CUDA GPU; use device=cpu or see `make doctor`")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps: this torch sees no Apple GPU; use device=cpu or see `make doctor`")
    return torch.device(name)


def nearest(name: str, names: Iterable[str], file: str = "configs/config.yaml") -> str:
    """`; did you mean 'x'?` for the closest of `names`, or the whole list when none is close."""
    names = list(names)
    # A bare `lr` should find `drqv2.lr`, which edit distance alone puts far away.
    tails = [other for other in names if other.rsplit(".", 1)[-1] == name]
    close = tails or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if len(names) <= 20 else f"; see {file} for all keys"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one dict of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as nested plain values (tuples as lists), as they stand in a run's config.yaml."""
    return _container(OmegaConf.create(dataclasses.asdict(settings)))


def build(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """A frozen dataclass from a mapping, checking names, types and ranges on the way."""
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in values:
        if name not in hints:
            raise UserError(f"unknown key {prefix}{name}{nearest(name, hints)}")
    missing = [field.name for field in dataclasses.fields(cls) if field.name not in values]
    if missing:
        raise UserError(f"{prefix}{missing[0]} has no value; give it one in configs/config.yaml")
    fields = {name: _convert(hints[name], value, f"{prefix}{name}") for name, value in values.items()}
    try:
        return cls(**fields)
    except ValueError as error:  # a part's own check of its values
        where = f"{prefix.rstrip('.')}: " if prefix else ""
        raise UserError(f"{where}{_first_line(error)}") from error


def _convert(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind`, or a UserError that names `key`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        value = _convert(args[0], value, key)
        for bound in args[1:]:
            if value is not None and not bound.low <= value <= bound.high:
                limit = f"at least {bound.low}" if value < bound.low else f"at most {bound.high}"
                raise UserError(f"{key}={value} is out of range: it must be {limit}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, key)
    if origin is Literal:
        if value not in args:
            names = [str(arg) for arg in args]
            raise UserError(f"{key}={value}: it must be one of {', '.join(names)}{_close(str(value), names)}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UserError(f"{key}={value}: it must be a list, such as [32,64]")
        return tuple(_convert(args[0], item, f"{key}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise UserError(f"{key} is a section; set one of its keys")
        return build(kind, value, f"{key}.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a schedule such as "0" is a number in YAML and on the command line
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}[kind]
        raise UserError(f"{key}={value} has the wrong type: it must be {expected}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{key}={value} is out of range: it must be finite")
    return value


def _close(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def _file(key: str, group: str, name: str) -> str:
    """The name of an existing file of a config group, or a UserError."""
    names = _names(group)
    if name not in names:
        raise UserError(f"unknown {key} {name!r}{_close(name, names)} (known: {', '.join(names)})")
    return name


def _check_key(key: str, known: Sequence[str], file: str = "configs/config.yaml") -> None:
    if key in known:
        return
    inside = [other for other in known if other.startswith(f"{key}.")]
    if inside:
        raise UserError(f"{key} is a section; set one of its keys, such as {inside[0]}")
    raise UserError(f"unknown key {key}{nearest(key, known, file)}")


def _check_sizes(pretrained: str, words: Sequence[Override]) -> None:
    """A size typed beside weights that have their own would be ignored: refuse it."""
    sized = ("world_model.tokenizer.", "world_model.transformer.")
    used = ("world_model.tokenizer.context_length", "world_model.transformer.attention_dropout")
    for word in words:
        if pretrained != "none" and word.key_or_group.startswith(sized) and word.key_or_group not in used:
            raise UserError(
                f"{word.key_or_group} comes from the weights in world_model.pretrained={pretrained}; "
                "add world_model.pretrained=none to choose it and begin with random weights"
            )


def _parse(overrides: Sequence[str]) -> list[Override]:
    lines = [_quote_schedule(line) for line in overrides]
    try:
        words = OverridesParser.create().parse_overrides(lines)
    except HydraException as error:
        raise UserError(f"cannot read {' '.join(overrides)!r}: {_first_line(error)}; write key=value") from error
    for word in words:
        if word.is_sweep_override():
            raise UserError(f"{word.input_line}: one value at a time, a run has one of each")
        if word.is_add() or word.is_force_add() or word.is_delete():
            raise UserError(f"{word.input_line}: keys cannot be added or removed; write key=value")
    return words


def _quote_schedule(line: str) -> str:
    """`x=linear(1,0,8)` is a function call to Hydra; users of DrQ-v2 mean the string."""
    key, equals, value = line.partition("=")
    return f"{key}='{value}'" if equals and value.endswith(")") and value[:1].isalpha() else line


def _container(config: Any) -> dict[str, Any]:
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]

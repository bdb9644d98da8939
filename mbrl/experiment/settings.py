"""What a run is made of: names, types and ranges here, values in `configs/`.

    settings = load(["task=coffee-push", "preset=small", "drqv2.lr=3e-4"])

`configs/config.yaml` names every key once. Four of them also choose a file, later files winning:
protocol, then task, then preset, then agent; what the user types wins over all of them. Hydra composes, and
its reach ends here: the rest of the project sees `Settings`, plain frozen data that nothing writes into.
"""

import dataclasses
import typing
from collections.abc import Mapping, Sequence
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
from agents import DreamerV3Config, DrQv2Config, PlannerConfig, value_range
from world_model import TokenizerConfig, TransformerConfig
from world_model.ivideogpt.config import LearnerConfig
from world_model.onestep import OneStepConfig
from world_model.schema import (  # noqa: F401, the commands take these from here
    Count,
    Folder,
    Fraction,
    Name,
    Positive,
    Range,
    Suffix,
    UserError,
    Weight,
    build,
    close,
    convert,
    first_line,
    nearest,
)

T = TypeVar("T")
CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
HELP = frozenset({"--help", "-h"})
Device = Literal["auto", "cpu", "cuda", "mps"]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Threads = Annotated[int, Range(0, 1024)]  # torch would ask the system for all of them


class HelpAsked(Exception):
    """`--help` was among the overrides: what the settings would be, and where each value stands."""

    def __init__(self, files: Sequence[str], overrides: Sequence[str], values: Mapping[str, Any]) -> None:
        super().__init__("--help")
        self.files = files  # in configs/, later ones win
        self.overrides = overrides  # beside --help
        self.values = values  # flat


@dataclasses.dataclass(frozen=True)
class WorldModelSettings:
    kind: Literal["ivideogpt", "onestep", "simulator"]
    heads: tuple[Literal["reward", "success", "continue"], ...]  # what is predicted beside frames
    pretrained: Folder  # a folder in the official layout, a hub name, or "none"; of ivideogpt
    onestep_pretrained: Folder  # a folder that a one-step model was saved in, or "none"
    onestep: OneStepConfig
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
    seed: Seed
    variant: Suffix  # told apart in the run folder: runs/<task>/<agent>-<variant>/<seed>
    run_root: Folder
    # the machine
    device: Device
    threads: Threads  # 0 leaves torch's choice
    # budget
    num_train_frames: Positive
    num_seed_frames: Count  # frames of the seed policy first
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
    success_key: str | None  # these two are of gymnasium environments, see `envs/gym.py`
    image_key: str | None
    success_bonus: Weight
    demonstrations: Count | str  # successful scripted episodes put into the replay first; or a folder of driven ones
    demonstration_tail: Count | None  # decisions of a demonstration imitated after its first success; None is all
    imitate_successes: bool  # episodes that the agent itself has played with success become demonstrations
    demonstration_share: str  # of an agent batch drawn from the demonstrations alone; a schedule in decisions
    seed_policy: Literal["auto", "random", "bc"]  # who acts during num_seed_frames; bc is the cloned policy with noise
    seed_stddev: Weight  # of that noise
    # replay
    nstep: Positive
    discount: Fraction
    batch_size: Positive
    replay_buffer_frames: Positive
    replay_memory_gb: Annotated[float, Range(0, 1e6)]  # larger buffers are memory-mapped files
    agent_updates_per_decision: Annotated[float, Range(0, 1000)]
    # imagination
    real_ratio: Fraction  # share of real transitions in an agent batch; 1 never dreams again
    dream_gate: Fraction  # least correlation of rewards dreamt of new episodes for dreams to be learned from; 0: none
    imagined_buffer_frames: Positive
    initial_model_updates: Count
    initial_rollouts: Count
    rollout_every_frames: Positive
    rollout_batch: Positive
    rollout_horizon: Positive
    rollout_temperature: Weight
    rollout_top_k: Positive
    update_transformer_every_frames: Positive
    update_tokenizer_every_frames: Positive
    # what is shown
    video: bool
    wandb: bool
    # planning
    planner: str  # a file of configs/planners
    exploration_stddev: Weight  # of the noise on actions of agent=mpc
    planning: PlannerConfig
    # parts
    drqv2: DrQv2Config
    dreamerv3: DreamerV3Config
    world_model: WorldModelSettings

    def __post_init__(self) -> None:
        low, high = value_range(self.demonstration_share)
        if low < 0 or high > 1:
            raise UserError(f"demonstration_share={self.demonstration_share} must stay between 0 and 1")
        seed_frames, all_frames = self.num_seed_frames, self.num_train_frames
        if seed_frames >= all_frames:
            raise UserError(f"num_train_frames={all_frames} must be more than num_seed_frames={seed_frames}")

    @property
    def updates_before_dreams(self) -> int:
        """Least `initial_model_updates` of a world model that begins at random.

        Its transformer waits until the tokenizer has had `quantize_after` updates, then learns from tokens that still
        change fast: with as many updates again its first dreams are more than noise.
        """
        return 2 * self.world_model.learner.quantize_after


def load(overrides: Sequence[str] = ()) -> Settings:
    """Compose the files and the user's overrides, `key=value` each.

    Raises UserError, one line, on anything wrong; HelpAsked if one of them is `--help`.
    """
    parsed = _parse(overrides)
    base = _base("config")
    for override in parsed:
        _check_key(override.key_or_group, list(base))
    chosen = base | {override.key_or_group: override.value() for override in parsed}

    try:
        task = envs.canonical(str(chosen["task"]))
    except envs.UnknownTask as error:
        raise UserError(str(error)) from error
    # What a run stores is the device it began on, so that no restart changes it unnoticed.
    device = pick_device(convert(Device, chosen["device"], "device")).type
    preset = str(chosen["preset"])
    if preset == "auto":
        preset = "paper" if device == "cuda" else "small"
    own_files = [name for name in (task, envs.suite_of(task).name) if name in _names("tasks")]
    files = {
        "protocols": _file("protocol", "protocols", str(chosen["protocol"])),
        **({"tasks": own_files[0]} if own_files else {}),  # a suite needs none
        "presets": _file("preset", "presets", preset),
        "agents": _file("agent", "agents", str(chosen["agent"])),
        "planners": _file("planner", "planners", str(chosen["planner"])),
    }
    values = _compose("config", files, parsed) | {"task": task, "preset": preset, "device": device}
    settings = build(Settings, values)
    _check_sizes(settings, parsed)
    _check_enough(settings)
    _stop_for_help(overrides, "config", files, settings)
    return settings


def load_plain(cls: type[T], config: str, overrides: Sequence[str] = ()) -> T:
    """As `load`, for a command whose keys all stand in one file, `configs/<config>.yaml`."""
    parsed = _parse(overrides)
    base = _base(config)
    for override in parsed:
        _check_key(override.key_or_group, list(base), f"configs/{config}.yaml")
    # Where there is such a key, it chooses a file that is laid over this one.
    chosen = base | {override.key_or_group: override.value() for override in parsed}
    files = {
        f"{key}s": _file(key, f"{key}s", str(chosen[key]))
        for key in ("schedule", "planner")
        if str(chosen.get(key, "none")) != "none"
    }
    settings = build(cls, _compose(config, files, parsed), file=f"configs/{config}.yaml")
    _stop_for_help(overrides, config, files, settings)
    return settings


def planner_preset(name: str) -> PlannerConfig:
    """The planner of `configs/planners/<name>.yaml`."""
    file = CONFIG_DIR / "planners" / f"{_file('planner', 'planners', name)}.yaml"
    return build(PlannerConfig, _container(OmegaConf.load(file))["planning"], "planning.")


def _base(config: str) -> dict[str, Any]:
    """The keys of a command, flat, with the values that they have in `configs/<config>.yaml`."""
    base = flatten(_container(OmegaConf.load(CONFIG_DIR / f"{config}.yaml")))
    base.pop("defaults", None)
    if "planner" in base:  # its keys stand in its file alone
        base |= flatten(_container(OmegaConf.load(CONFIG_DIR / "planners" / f"{base['planner']}.yaml")))
    return base


def _stop_for_help(overrides: Sequence[str], config: str, files: Mapping[str, str], settings: Any) -> None:
    """Raises HelpAsked if it was."""
    if HELP.intersection(overrides):
        layers = [f"{config}.yaml", *(f"{group}/{name}.yaml" for group, name in files.items())]
        others = [override for override in overrides if override not in HELP]
        raise HelpAsked(layers, others, flatten(to_dict(settings)))


def _compose(config: str, files: Mapping[str, str], parsed: Sequence[Override]) -> dict[str, Any]:
    """Hydra's composition of `configs/<config>.yaml`, the chosen file of each group and the overrides."""
    groups = [f"{group}={name}" for group, name in files.items()]
    if config == "config" and "tasks" not in files:
        groups.append("~tasks")
    try:
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            return _container(compose(config, overrides=[*groups, *(override.input_line or "" for override in parsed)]))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"the settings do not compose: {first_line(error)}") from error


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """The keys that the overrides give a value to."""
    return {override.key_or_group for override in _parse(overrides)}


def pick_device(name: str) -> torch.device:
    """The torch device that `device=<name>` means on this machine."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this torch sees no CUDA GPU; use device=cpu or see `make doctor`")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps: this torch sees no Apple GPU; use device=cpu or see `make doctor`")
    return torch.device(name)


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
    return typing.cast(dict[str, Any], _plain(dataclasses.asdict(settings)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def _file(key: str, group: str, name: str) -> str:
    """The name of an existing file of a config group, or a UserError."""
    names = _names(group)
    if name not in names:
        raise UserError(f"unknown {key} {name!r}{close(name, names)} (known: {', '.join(names)})")
    return name


def _check_key(key: str, known: Sequence[str], file: str = "configs/config.yaml") -> None:
    if key in known:
        return
    inside = [other for other in known if other.startswith(f"{key}.")]
    if inside:
        raise UserError(f"{key} is a section; set one of its keys, such as {inside[0]}")
    raise UserError(f"unknown key {key}{nearest(key, known, file)}")


def _check_sizes(settings: Settings, parsed: Sequence[Override]) -> None:
    """A size typed beside weights that have their own would be ignored: refuse it."""
    sized = ("world_model.tokenizer.", "world_model.transformer.")
    used = ("world_model.tokenizer.context_length", "world_model.transformer.attention_dropout")
    pretrained = settings.world_model.pretrained
    for override in parsed:
        ours = settings.world_model.kind == "ivideogpt" and pretrained != "none"
        if ours and override.key_or_group.startswith(sized) and override.key_or_group not in used:
            enough = max(settings.initial_model_updates, settings.updates_before_dreams)
            longer = f" initial_model_updates={enough}" if enough > settings.initial_model_updates else ""
            raise UserError(
                f"{override.key_or_group} comes from the weights in world_model.pretrained={pretrained}; "
                f"add world_model.pretrained=none{longer} to choose it and begin with random weights"
            )


def _check_enough(settings: Settings) -> None:
    """Refuse what would run to its end and never learn. Only of what is asked for: a run that was made can be read."""
    s, least = settings, settings.updates_before_dreams
    dreams_at_random = s.agent == "mbpo" and s.real_ratio < 1
    dreams_at_random &= s.world_model.kind == "ivideogpt" and s.world_model.pretrained == "none"
    if dreams_at_random and s.initial_model_updates < least:
        raise UserError(
            f"initial_model_updates={s.initial_model_updates} must be at least {least} beside "
            f"world_model.pretrained=none and world_model.learner.quantize_after={least // 2}, after which the "
            "transformer begins to learn: the first dreams would be noise"
        )
    window, steps = s.dreamerv3.batch_length, min(s.num_train_frames, s.replay_buffer_frames) // s.action_repeat
    if s.agent == "dreamerv3" and window >= steps:
        raise UserError(
            f"dreamerv3.batch_length={window} must be less than the {steps} decisions that num_train_frames and "
            "replay_buffer_frames allow: it would never learn"
        )


def _parse(overrides: Sequence[str]) -> list[Override]:
    lines = [_quote_schedule(line) for line in overrides if line not in HELP]
    for line in lines:
        if not line.isprintable():  # bytes that are no UTF-8, too
            raise UserError(f"cannot read {line!r}: it has characters that cannot be printed; write key=value")
    try:
        parsed = OverridesParser.create().parse_overrides(lines)
    except (HydraException, ValueError, RecursionError) as error:  # the latter of numbers and lists without an end
        raise UserError(f"cannot read {' '.join(overrides)!r}: {first_line(error)}; write key=value") from error
    for override in parsed:
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: one value at a time, a run has one of each")
        if override.is_add() or override.is_force_add() or override.is_delete():
            raise UserError(f"{override.input_line}: keys cannot be added or removed; write key=value")
    return parsed


def _quote_schedule(line: str) -> str:
    """`x=linear(1,0,8)` is a function call to Hydra; users of DrQ-v2 mean the string."""
    key, equals, value = line.partition("=")
    return f"{key}='{value}'" if equals and value.endswith(")") and value[:1].isalpha() else line


def _container(config: Any) -> dict[str, Any]:
    return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))

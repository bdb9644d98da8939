"""What makes two runs the same method: the keys that their agent uses, with defaults for keys newer than the run.

A run may be older or newer than this code. A key that it lacks has the value that `configs/` give it for the run's own
task, agent, preset and protocol; a key that was removed since says nothing. A new agent needs no line here: until it
has one, every key counts for it.
"""

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

from mbrl.experiment.settings import UserError, load, to_dict

IMAGINATION = {
    "world_model",
    "real_ratio",
    "dream_gate",
    "imagined_buffer_frames",
    "initial_model_updates",
    "initial_rollouts",
    "rollout_every_frames",
    "rollout_batch",
    "rollout_horizon",
    "rollout_temperature",
    "rollout_top_k",
    "update_transformer_every_frames",
    "update_tokenizer_every_frames",
}
TRANSITIONS = {
    "nstep",
    "discount",
    "batch_size",
    "agent_updates_per_decision",
    "demonstration_share",
    "demonstration_tail",
    "imitate_successes",
}
PLANNING = {"planner", "planning", "exploration_stddev"}
# Keys, and sections of them, that an agent never looks at.
UNUSED = {
    "mbpo": frozenset({"dreamerv3"} | PLANNING),
    "drqv2": frozenset({"dreamerv3"} | IMAGINATION | PLANNING),
    "dreamerv3": frozenset({"drqv2"} | IMAGINATION | TRANSITIONS | PLANNING),
    "mpc": frozenset(
        {"drqv2", "dreamerv3", "real_ratio", "dream_gate", "imagined_buffer_frames", "initial_rollouts"}
        | {"rollout_every_frames", "rollout_batch"}
        | TRANSITIONS - {"discount"}
    ),
    "uniform": frozenset({"drqv2", "dreamerv3"} | IMAGINATION | TRANSITIONS | PLANNING),
}
# Keys that a restart may change. They change nothing a run computes, except that on a CPU another number of `threads`
# splits sums elsewhere: the last bits then differ, so a run is only repeated bit for bit with the same number.
FREE_KEYS = frozenset({"run_root", "log_every_frames", "video", "wandb", "threads"})
# Keys in which the seeds of one method may differ.
BETWEEN_SEEDS = FREE_KEYS | {
    "seed",
    "device",
    "num_train_frames",
    "eval_every_frames",
    "num_eval_episodes",
    "checkpoint_every_frames",
}
# Old names of keys, in configs of older runs.
RENAMED = {"drqv2.guide_schedule": "drqv2.bc_schedule", "drqv2.guide_batch_size": "drqv2.bc_batch_size"}
CHOOSING = ("task", "agent", "preset", "protocol", "planner")  # the keys that choose files of configs/


def uses(agent: str, key: str) -> bool:
    """Whether a dotted key of `Settings` changes what a run of this agent does."""
    return not {key, key.split(".")[0]} & UNUSED.get(agent, frozenset())


def differences(before: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str]) -> list[str]:
    """Keys, `free` ones aside, in which two flat configs differ as methods; those that choose the others come first.

    Keys that only one of them has do not count: complete both with `with_defaults` first.
    """
    unequal = [key for key in now if key in before and before[key] != now[key] and key not in free]
    used = [key for key in unequal if uses(str(before["agent"]), key) or uses(str(now["agent"]), key)]
    return sorted(used, key=lambda key: key not in CHOOSING)


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's nested config with exactly the keys of this version.

    Raises UserError if this version does not have the run's task, agent, preset or protocol.
    """
    chosen = {key: config[key] for key in CHOOSING if key in config}
    for key, value in chosen.items():
        if not re.fullmatch(r"[\w./:-]{1,99}", str(value)):  # anything else would have a meaning on a command line
            raise UserError(f"{key}={value}: there is no such {key}")
    return _laid_over(_defaults(*(f"{key}={value}" for key, value in chosen.items())), renamed(config))


def renamed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested config with the present names of its keys."""
    new = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for old, name in RENAMED.items():
        (section, old_key), (_, key) = old.split("."), name.split(".")
        values = new.get(section)
        if isinstance(values, dict) and old_key in values:
            values[key] = values.pop(old_key)
    return new


@functools.cache
def _defaults(*choices: str) -> dict[str, Any]:
    return to_dict(load([*choices, "device=cpu"]))  # a run's own device need not be there where it is read


def _laid_over(defaults: Mapping[str, Any], values: Any) -> dict[str, Any]:
    own = values if isinstance(values, Mapping) else {}
    return {
        key: _laid_over(default, own.get(key)) if isinstance(default, Mapping) else own.get(key, default)
        for key, default in defaults.items()
    }

"""Agents: things that act on stacked images and learn from batches of transitions (see `agents.api`)."""

from typing import Any, NamedTuple

from agents.api import Agent, BehaviourCloner, InvalidConfig, StateMismatch, StreamBatch, TransitionBatch
from agents.dreamerv3 import DreamerV3, DreamerV3Config
from agents.drqv2 import TARGET_CRITIC, DrQv2, DrQv2Config
from agents.noisy import Noisy
from agents.planner import Plan, Planner, PlannerConfig
from agents.schedules import parse_schedule, value_range
from agents.uniform import Uniform


class Kind(NamedTuple):
    """What an agent's name stands for: agent(obs_shape, action_dim, config, device, seed)."""

    section: str  # of a run's config, which holds the fields of `config`
    config: Any
    agent: Any


AGENTS = {
    "drqv2": Kind("drqv2", DrQv2Config, DrQv2),
    "mbpo": Kind("drqv2", DrQv2Config, DrQv2),
    "dreamerv3": Kind("dreamerv3", DreamerV3Config, DreamerV3),
}

__all__ = [
    "AGENTS",
    "TARGET_CRITIC",
    "Agent",
    "BehaviourCloner",
    "DreamerV3",
    "DreamerV3Config",
    "DrQv2",
    "DrQv2Config",
    "InvalidConfig",
    "Kind",
    "Noisy",
    "Plan",
    "Planner",
    "PlannerConfig",
    "StateMismatch",
    "StreamBatch",
    "TransitionBatch",
    "Uniform",
    "parse_schedule",
    "value_range",
]

"""Agents: things that act on stacked images and learn from batches of transitions (see `agents.api`)."""

from agents.api import Agent, BehaviourCloner, InvalidConfig, StateMismatch, StreamBatch, TransitionBatch
from agents.dreamerv3 import DreamerV3, DreamerV3Config
from agents.drqv2 import DrQv2, DrQv2Config
from agents.noisy import Noisy
from agents.planner import Plan, Planner, PlannerConfig
from agents.schedules import parse_schedule, value_range
from agents.uniform import Uniform

__all__ = [
    "Agent",
    "BehaviourCloner",
    "DreamerV3",
    "DreamerV3Config",
    "DrQv2",
    "DrQv2Config",
    "InvalidConfig",
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

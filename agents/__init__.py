"""Agents: things that act on stacked pictures and learn from batches of transitions (see `agents.api`)."""

from agents.api import Agent, InvalidConfig, StateMismatch, TransitionBatch
from agents.drqv2 import DrQv2, DrQv2Config
from agents.schedules import parse_schedule
from agents.uniform import Uniform

__all__ = [
    "Agent",
    "DrQv2",
    "DrQv2Config",
    "InvalidConfig",
    "StateMismatch",
    "TransitionBatch",
    "Uniform",
    "parse_schedule",
]

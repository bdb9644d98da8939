"""DreamerV3, whole: `agent` is the agent, `model` its world model, `behaviour` its actor and critic."""

from agents.dreamerv3.agent import DreamerV3
from agents.dreamerv3.config import SIZES, DreamerV3Config

__all__ = ["SIZES", "DreamerV3", "DreamerV3Config"]

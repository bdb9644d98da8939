"""The iVideoGPT world model: a compressive video tokenizer and a transformer over frames, actions and rewards."""

from world_model.api import Clips, Dream, Origin, Rollout, Step, WorldModel, imagine
from world_model.heads import HEADS, symexp, symlog
from world_model.layout import TokenLayout
from world_model.model import IVideoGPT, Prediction
from world_model.tokenizer import TokenizerConfig
from world_model.transformer import TransformerConfig
from world_model.weights import WeightsError

__all__ = [
    "HEADS",
    "Clips",
    "Dream",
    "IVideoGPT",
    "Origin",
    "Prediction",
    "Rollout",
    "Step",
    "TokenLayout",
    "TokenizerConfig",
    "TransformerConfig",
    "WeightsError",
    "WorldModel",
    "imagine",
    "symexp",
    "symlog",
]

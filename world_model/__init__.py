"""The iVideoGPT world model: a compressive video tokenizer and a transformer over frames, actions and rewards."""

from world_model.api import Clips, Dream, Origin, Rollout, Step, WorldModel, imagine
from world_model.heads import HEADS, symexp, symlog
from world_model.ivideogpt.layout import TokenLayout
from world_model.ivideogpt.model import IVideoGPT
from world_model.ivideogpt.network import Prediction
from world_model.ivideogpt.tokenizer import TokenizerConfig
from world_model.ivideogpt.transformer import TransformerConfig
from world_model.ivideogpt.weights import WeightsError

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

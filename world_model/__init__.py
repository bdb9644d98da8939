"""World models behind one contract (`world_model.api`): iVideoGPT, and a one-step predictor as its control."""

from world_model.api import Clips, Dream, Episode, Origin, Rollout, Step, WeightsError, WorldModel, imagine
from world_model.heads import HEADS, symexp, symlog
from world_model.ivideogpt.layout import TokenLayout
from world_model.ivideogpt.model import IVideoGPT
from world_model.ivideogpt.network import Prediction
from world_model.ivideogpt.tokenizer import TokenizerConfig
from world_model.ivideogpt.transformer import TransformerConfig

__all__ = [
    "HEADS",
    "Clips",
    "Dream",
    "Episode",
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

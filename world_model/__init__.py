"""The iVideoGPT world model: a compressive video tokenizer and a transformer over frames, actions and rewards."""

from world_model.imagine import Dream
from world_model.layout import TokenLayout
from world_model.model import IVideoGPT, Prediction, symexp, symlog
from world_model.tokenizer import TokenizerConfig
from world_model.transformer import TransformerConfig
from world_model.weights import WeightsError

__all__ = [
    "Dream",
    "IVideoGPT",
    "Prediction",
    "TokenLayout",
    "TokenizerConfig",
    "TransformerConfig",
    "WeightsError",
    "symexp",
    "symlog",
]

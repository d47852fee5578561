"""The interface of a recurrent-depth model, and one folder for each model family."""

from .adapter import RecurrentDepthAdapter
from .base_model import RecurrentDepthModelOutput
from .causal_lm import RecurrentDepthForCausalLM, RecurrentDepthOutput
from .interface import RecurrentDepthInterface

__all__ = [
    "RecurrentDepthAdapter",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthInterface",
    "RecurrentDepthModelOutput",
    "RecurrentDepthOutput",
]

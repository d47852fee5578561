"""The interface of a recurrent-depth model, and the model families."""

from .adapter import RecurrentDepthAdapter
from .base_model import RecurrentDepthModelOutput
from .causal_lm import RecurrentDepthForCausalLM, RecurrentDepthOutput
from .huginn_raven import RavenConfig, RavenLanguageModel, RavenModel
from .interface import RecurrentDepthInterface
from .ouro import OuroConfig, OuroLanguageModel, OuroModel

__all__ = [
    "OuroConfig",
    "OuroLanguageModel",
    "OuroModel",
    "RavenConfig",
    "RavenLanguageModel",
    "RavenModel",
    "RecurrentDepthAdapter",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthInterface",
    "RecurrentDepthModelOutput",
    "RecurrentDepthOutput",
]

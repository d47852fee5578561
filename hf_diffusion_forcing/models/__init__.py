"""The model families, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from .adapter import RecurrentDepthAdapter, enable_recurrent_depth
from .causal_lm import RecurrentDepthForCausalLM, RecurrentDepthOutput
from .huginn_raven import RavenConfig, RavenForCausalLM, RavenModel
from .interface import RecurrentDepthInterface
from .ouro import OuroConfig, OuroForCausalLM, OuroModel

for _config, _model in ((RavenConfig, RavenForCausalLM), (OuroConfig, OuroForCausalLM)):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForCausalLM.register(_config, _model)

__all__ = [
    "OuroConfig",
    "OuroForCausalLM",
    "OuroModel",
    "RavenConfig",
    "RavenForCausalLM",
    "RavenModel",
    "RecurrentDepthAdapter",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthInterface",
    "RecurrentDepthOutput",
    "enable_recurrent_depth",
]

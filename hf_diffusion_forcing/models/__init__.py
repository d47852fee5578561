"""The model families, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .adapter import RecurrentDepthAdapter, enable_recurrent_depth
from .base_model import RecurrentDepthModelOutput
from .causal_lm import RecurrentDepthForCausalLM, RecurrentDepthOutput
from .huginn_raven import RavenConfig, RavenForCausalLM, RavenModel
from .interface import RecurrentDepthInterface
from .ouro import OuroConfig, OuroForCausalLM, OuroModel

for _config, _base, _model in ((RavenConfig, RavenModel, RavenForCausalLM), (OuroConfig, OuroModel, OuroForCausalLM)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _base)
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
    "RecurrentDepthModelOutput",
    "RecurrentDepthOutput",
    "enable_recurrent_depth",
]

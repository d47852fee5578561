"""The model families, registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForCausalLM

from .huginn_raven import RavenConfig, RavenForCausalLM, RavenModel
from .interface import RecurrentDepthInterface

AutoConfig.register(RavenConfig.model_type, RavenConfig)
AutoModelForCausalLM.register(RavenConfig, RavenForCausalLM)

__all__ = ["RavenConfig", "RavenForCausalLM", "RavenModel", "RecurrentDepthInterface"]

"""Huginn and the models of its format."""

from .configuration_huginn_raven import RavenConfig
from .modeling_huginn_raven import RavenForCausalLM, RavenModel, RavenPreTrainedModel

__all__ = ["RavenConfig", "RavenForCausalLM", "RavenModel", "RavenPreTrainedModel"]

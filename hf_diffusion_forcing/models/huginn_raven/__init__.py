"""Huginn and the models of its format."""

from .configuration_huginn_raven import RavenConfig
from .modeling_huginn_raven import RavenLanguageModel, RavenModel, RavenPreTrainedModel

__all__ = ["RavenConfig", "RavenLanguageModel", "RavenModel", "RavenPreTrainedModel"]

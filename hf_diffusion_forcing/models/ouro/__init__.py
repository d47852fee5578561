"""Ouro and the models of its format."""

from .configuration_ouro import OuroConfig
from .modeling_ouro import OuroLanguageModel, OuroModel, OuroPreTrainedModel

__all__ = ["OuroConfig", "OuroLanguageModel", "OuroModel", "OuroPreTrainedModel"]

"""Ouro and the models of its format."""

from .configuration_ouro import OuroConfig
from .modeling_ouro import (
    OuroForSequenceClassification,
    OuroForTokenClassification,
    OuroLanguageModel,
    OuroModel,
    OuroPreTrainedModel,
)

__all__ = [
    "OuroConfig",
    "OuroForSequenceClassification",
    "OuroForTokenClassification",
    "OuroLanguageModel",
    "OuroModel",
    "OuroPreTrainedModel",
]

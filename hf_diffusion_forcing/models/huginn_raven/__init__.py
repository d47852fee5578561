"""Huginn and the models of its format."""

from .configuration_huginn_raven import RavenConfig
from .modeling_huginn_raven import (
    RavenForSequenceClassification,
    RavenForTokenClassification,
    RavenLanguageModel,
    RavenModel,
    RavenPreTrainedModel,
)

__all__ = [
    "RavenConfig",
    "RavenForSequenceClassification",
    "RavenForTokenClassification",
    "RavenLanguageModel",
    "RavenModel",
    "RavenPreTrainedModel",
]

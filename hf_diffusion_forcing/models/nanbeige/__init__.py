"""Nanbeige4.2 and the models of its format."""

from .configuration_nanbeige import NanbeigeConfig
from .modeling_nanbeige import (
    NanbeigeForSequenceClassification,
    NanbeigeForTokenClassification,
    NanbeigeLanguageModel,
    NanbeigeModel,
    NanbeigePreTrainedModel,
)

__all__ = [
    "NanbeigeConfig",
    "NanbeigeForSequenceClassification",
    "NanbeigeForTokenClassification",
    "NanbeigeLanguageModel",
    "NanbeigeModel",
    "NanbeigePreTrainedModel",
]

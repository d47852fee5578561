"""Parcae: prelude, core with diagonal injection and value embeddings, and coda."""

from .configuration_parcae import ParcaeConfig
from .modeling_parcae import (
    ParcaeForSequenceClassification,
    ParcaeForTokenClassification,
    ParcaeLanguageModel,
    ParcaeModel,
    ParcaePreTrainedModel,
)

__all__ = [
    "ParcaeConfig",
    "ParcaeForSequenceClassification",
    "ParcaeForTokenClassification",
    "ParcaeLanguageModel",
    "ParcaeModel",
    "ParcaePreTrainedModel",
]

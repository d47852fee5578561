"""The interface of a recurrent-depth model, and the model families."""

from .adapter import RecurrentDepthAdapter
from .base_model import RecurrentDepthModelOutput
from .causal_lm import RecurrentDepthForCausalLM, RecurrentDepthOutput
from .hrm_text import HrmTextAdapter, HrmTextConfig
from .huginn_raven import (
    RavenConfig,
    RavenForSequenceClassification,
    RavenForTokenClassification,
    RavenLanguageModel,
    RavenModel,
)
from .interface import RecurrentDepthInterface
from .nanbeige import (
    NanbeigeConfig,
    NanbeigeForSequenceClassification,
    NanbeigeForTokenClassification,
    NanbeigeLanguageModel,
    NanbeigeModel,
)
from .ouro import (
    OuroConfig,
    OuroForSequenceClassification,
    OuroForTokenClassification,
    OuroLanguageModel,
    OuroModel,
)

__all__ = [
    "HrmTextAdapter",
    "HrmTextConfig",
    "NanbeigeConfig",
    "NanbeigeForSequenceClassification",
    "NanbeigeForTokenClassification",
    "NanbeigeLanguageModel",
    "NanbeigeModel",
    "OuroConfig",
    "OuroForSequenceClassification",
    "OuroForTokenClassification",
    "OuroLanguageModel",
    "OuroModel",
    "RavenConfig",
    "RavenForSequenceClassification",
    "RavenForTokenClassification",
    "RavenLanguageModel",
    "RavenModel",
    "RecurrentDepthAdapter",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthInterface",
    "RecurrentDepthModelOutput",
    "RecurrentDepthOutput",
]

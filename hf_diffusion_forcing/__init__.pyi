"""What type checkers know of the package: the names of `__init__.py`, which imports them when they are used."""

from .cache import RecurrentDepthCache
from .checkpoints import bundled_checkpoint
from .generation.mixin import RecurrentDepthGenerationMixin
from .generation.output import DiffusionForcingOutput, SamplerStats
from .generation.trace import TokenTrace, Trace, WaveTick
from .hooks.draft_source import DraftSource, PromptLookup, draft_source, register_draft_source
from .hooks.exit_criterion import ExitCriterion, ExitCriterionList, exit_criterion, register_exit_criterion
from .hooks.latent_criteria import (
    CosineCriterion,
    ExitGateCriterion,
    FixedCriterion,
    LatentAccelerationCriterion,
    LatentDifferenceCriterion,
)
from .hooks.latent_processor import LatentProcessor, LatentProcessorList, latent_processor, register_latent_processor
from .hooks.latent_processors import (
    AndersonAcceleration,
    ContinuousCompute,
    EmbeddingMomentum,
    LatentMomentum,
    StateNoise,
)
from .hooks.learned_criterion import LearnedCriterion
from .hooks.logits_criteria import (
    ArgmaxStabilityCriterion,
    EntropyCriterion,
    KLCriterion,
    MinPKLCriterion,
    TokenStabilityCriterion,
)
from .hooks.refinement import Refinement
from .hooks.settling import SettlingCriterion
from .models import RecurrentDepthForCausalLM, RecurrentDepthInterface, RecurrentDepthModelOutput, RecurrentDepthOutput
from .packing import pack_linear_weights, unpack_linear_weights
from .registration import (
    HrmTextConfig,
    HrmTextForCausalLM,
    NanbeigeConfig,
    NanbeigeForCausalLM,
    NanbeigeForSequenceClassification,
    NanbeigeForTokenClassification,
    NanbeigeModel,
    OuroConfig,
    OuroForCausalLM,
    OuroForSequenceClassification,
    OuroForTokenClassification,
    OuroModel,
    ParcaeConfig,
    ParcaeForCausalLM,
    ParcaeForSequenceClassification,
    ParcaeForTokenClassification,
    ParcaeModel,
    RavenConfig,
    RavenForCausalLM,
    RavenForSequenceClassification,
    RavenForTokenClassification,
    RavenModel,
    RecurrentDepthAdapter,
    enable_recurrent_depth,
)
from .serving.manager import ContinuousBatchingManager
from .serving.statistics import BatchingStats
from .settings.adaptive import AdaptiveConfig
from .settings.autoregressive import AutoregressiveConfig
from .settings.diffusion_forcing import DiffusionForcingConfig
from .settings.generation_config import RecurrentDepthGenerationConfig
from .settings.registry import DRAFT_SOURCES, EXIT_CRITERIA, LATENT_PROCESSORS
from .settings.sampler_config import SamplerConfig
from .settings.speculative_wavefront import SpeculativeWavefrontConfig
from .version import __version__

__all__ = [
    "DRAFT_SOURCES",
    "EXIT_CRITERIA",
    "LATENT_PROCESSORS",
    "AdaptiveConfig",
    "AndersonAcceleration",
    "ArgmaxStabilityCriterion",
    "AutoregressiveConfig",
    "BatchingStats",
    "ContinuousBatchingManager",
    "ContinuousCompute",
    "CosineCriterion",
    "DiffusionForcingConfig",
    "DiffusionForcingOutput",
    "DraftSource",
    "EmbeddingMomentum",
    "EntropyCriterion",
    "ExitCriterion",
    "ExitCriterionList",
    "ExitGateCriterion",
    "FixedCriterion",
    "HrmTextConfig",
    "HrmTextForCausalLM",
    "KLCriterion",
    "LatentAccelerationCriterion",
    "LatentDifferenceCriterion",
    "LatentMomentum",
    "LatentProcessor",
    "LatentProcessorList",
    "LearnedCriterion",
    "MinPKLCriterion",
    "NanbeigeConfig",
    "NanbeigeForCausalLM",
    "NanbeigeForSequenceClassification",
    "NanbeigeForTokenClassification",
    "NanbeigeModel",
    "OuroConfig",
    "OuroForCausalLM",
    "OuroForSequenceClassification",
    "OuroForTokenClassification",
    "OuroModel",
    "ParcaeConfig",
    "ParcaeForCausalLM",
    "ParcaeForSequenceClassification",
    "ParcaeForTokenClassification",
    "ParcaeModel",
    "PromptLookup",
    "RavenConfig",
    "RavenForCausalLM",
    "RavenForSequenceClassification",
    "RavenForTokenClassification",
    "RavenModel",
    "RecurrentDepthAdapter",
    "RecurrentDepthCache",
    "RecurrentDepthForCausalLM",
    "RecurrentDepthGenerationConfig",
    "RecurrentDepthGenerationMixin",
    "RecurrentDepthInterface",
    "RecurrentDepthModelOutput",
    "RecurrentDepthOutput",
    "Refinement",
    "SamplerConfig",
    "SamplerStats",
    "SettlingCriterion",
    "SpeculativeWavefrontConfig",
    "StateNoise",
    "TokenStabilityCriterion",
    "TokenTrace",
    "Trace",
    "WaveTick",
    "__version__",
    "bundled_checkpoint",
    "draft_source",
    "enable_recurrent_depth",
    "exit_criterion",
    "latent_processor",
    "pack_linear_weights",
    "register_draft_source",
    "register_exit_criterion",
    "register_latent_processor",
    "unpack_linear_weights",
]

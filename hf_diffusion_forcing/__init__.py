"""Diffusion forcing for recurrent-depth language models, as an extension of `transformers`.

Importing this package registers its model families with the Auto classes, so their checkpoints load with native code.
It imports neither torch nor transformers: each public name is imported when it is first used (PEP 562).
"""

from importlib import import_module
from typing import Any

from .checkpoints import bundled_checkpoint
from .families import NAMES as FAMILY_NAMES
from .lazy_registration import register_lazily
from .version import __version__

NAMES: dict[str, tuple[str, ...]] = {
    ".cache": ("RecurrentDepthCache",),
    ".generation.mixin": ("RecurrentDepthGenerationMixin",),
    ".generation.output": (
        "DiffusionForcingOutput",
        "SamplerStats",
    ),
    ".generation.trace": (
        "TokenTrace",
        "Trace",
        "WaveTick",
    ),
    ".hooks.draft_source": (
        "DraftSource",
        "PromptLookup",
        "draft_source",
        "register_draft_source",
    ),
    ".hooks.exit_criterion": (
        "ExitCriterion",
        "ExitCriterionList",
        "exit_criterion",
        "register_exit_criterion",
    ),
    ".hooks.latent_criteria": (
        "CosineCriterion",
        "ExitGateCriterion",
        "FixedCriterion",
        "LatentAccelerationCriterion",
        "LatentDifferenceCriterion",
    ),
    ".hooks.latent_processor": (
        "LatentProcessor",
        "LatentProcessorList",
        "latent_processor",
        "register_latent_processor",
    ),
    ".hooks.latent_processors": (
        "AndersonAcceleration",
        "ContinuousCompute",
        "EmbeddingMomentum",
        "LatentMomentum",
        "StateNoise",
    ),
    ".hooks.learned_criterion": ("LearnedCriterion",),
    ".hooks.logits_criteria": (
        "ArgmaxStabilityCriterion",
        "EntropyCriterion",
        "KLCriterion",
        "MinPKLCriterion",
        "TokenStabilityCriterion",
    ),
    ".hooks.refinement": ("Refinement",),
    ".hooks.settling": ("SettlingCriterion",),
    ".models": (
        "RecurrentDepthForCausalLM",
        "RecurrentDepthInterface",
        "RecurrentDepthModelOutput",
        "RecurrentDepthOutput",
    ),
    ".packing": (
        "pack_linear_weights",
        "unpack_linear_weights",
    ),
    ".registration": (
        *FAMILY_NAMES,
        "RecurrentDepthAdapter",
        "enable_recurrent_depth",
    ),
    ".serving.manager": ("ContinuousBatchingManager",),
    ".serving.statistics": ("BatchingStats",),
    ".settings.adaptive": ("AdaptiveConfig",),
    ".settings.autoregressive": ("AutoregressiveConfig",),
    ".settings.diffusion_forcing": ("DiffusionForcingConfig",),
    ".settings.generation_config": ("RecurrentDepthGenerationConfig",),
    ".settings.registry": (
        "DRAFT_SOURCES",
        "EXIT_CRITERIA",
        "LATENT_PROCESSORS",
    ),
    ".settings.sampler_config": ("SamplerConfig",),
    ".settings.speculative_wavefront": ("SpeculativeWavefrontConfig",),
}
"""The public names by the module that has them. Type checkers read the same from `__init__.pyi`."""

MODULES = {name: module for module, names in NAMES.items() for name in names}

__all__ = ["__version__", "bundled_checkpoint", *MODULES]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(MODULES[name], __name__), name)
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_lazily()

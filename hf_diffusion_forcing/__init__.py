"""Diffusion forcing for recurrent-depth language models, as an extension of `transformers`.

Importing this package registers its model families with the Auto classes, so their checkpoints load with native code.
It imports neither torch nor transformers: each public name is imported when it is first used (PEP 562).
"""

from importlib import import_module
from typing import Any

from .checkpoints import bundled_checkpoint
from .lazy_registration import register_lazily
from .version import __version__

NAMES: dict[str, tuple[str, ...]] = {
    ".cache.recurrent_depth_cache": ("RecurrentDepthCache",),
    ".generation.mixin": ("RecurrentDepthGenerationMixin",),
    ".generation.output": ("DiffusionForcingOutput", "SamplerStats"),
    ".generation.trace": ("TokenTrace", "Trace", "WaveTick"),
    ".hooks.exit_criteria": (
        "EXIT_CRITERIA",
        "ArgmaxStabilityCriterion",
        "CosineCriterion",
        "EntropyCriterion",
        "ExitCriterion",
        "ExitCriterionList",
        "ExitGateCriterion",
        "FixedCriterion",
        "KLCriterion",
        "LatentAccelerationCriterion",
        "LatentDifferenceCriterion",
        "MinPKLCriterion",
        "TokenStabilityCriterion",
        "exit_criterion",
        "register_exit_criterion",
    ),
    ".hooks.latent_processors": (
        "LATENT_PROCESSORS",
        "AndersonAcceleration",
        "ContinuousCompute",
        "EmbeddingMomentum",
        "LatentMomentum",
        "LatentProcessor",
        "LatentProcessorList",
        "StateNoise",
        "latent_processor",
        "register_latent_processor",
    ),
    ".hooks.refinement": ("Refinement",),
    ".models": (
        "OuroConfig",
        "OuroForCausalLM",
        "OuroModel",
        "RavenConfig",
        "RavenForCausalLM",
        "RavenModel",
        "RecurrentDepthAdapter",
        "RecurrentDepthForCausalLM",
        "RecurrentDepthInterface",
        "RecurrentDepthModelOutput",
        "RecurrentDepthOutput",
        "enable_recurrent_depth",
    ),
    ".packing": ("pack_linear_weights", "unpack_linear_weights"),
    ".settings.sampler_configs": (
        "AdaptiveConfig",
        "AutoregressiveConfig",
        "DiffusionForcingConfig",
        "SamplerConfig",
        "SpeculativeWavefrontConfig",
    ),
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

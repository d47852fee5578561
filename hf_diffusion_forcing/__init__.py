"""Diffusion forcing for recurrent-depth language models, as an extension of `transformers`.

Importing this package registers its model families with the Auto classes, so their checkpoints load with native code.
"""

from .cache import RecurrentDepthCache
from .checkpoints import bundled_checkpoint
from .configuration import AutoregressiveConfig, DiffusionForcingConfig, SamplerConfig
from .generation.mixin import RecurrentDepthGenerationMixin
from .generation.output import DiffusionForcingOutput, SamplerStats
from .models import RavenConfig, RavenForCausalLM, RavenModel, RecurrentDepthInterface
from .version import __version__

__all__ = [
    "AutoregressiveConfig",
    "DiffusionForcingConfig",
    "DiffusionForcingOutput",
    "RavenConfig",
    "RavenForCausalLM",
    "RavenModel",
    "RecurrentDepthCache",
    "RecurrentDepthGenerationMixin",
    "RecurrentDepthInterface",
    "SamplerConfig",
    "SamplerStats",
    "__version__",
    "bundled_checkpoint",
]

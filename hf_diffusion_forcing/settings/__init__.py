"""The settings of a call: sampler configs, presets, and the generation config that holds them.

Only the generation config imports torch and transformers, so that commands start fast.
"""

from .adaptive import AdaptiveConfig
from .autoregressive import AutoregressiveConfig
from .diffusion_forcing import DiffusionForcingConfig
from .sampler_config import register_sampler_config
from .speculative_wavefront import SpeculativeWavefrontConfig

for _config in (AutoregressiveConfig, AdaptiveConfig, DiffusionForcingConfig, SpeculativeWavefrontConfig):
    register_sampler_config(_config)

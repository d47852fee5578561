"""What a call may say: the settings of samplers, presets, and the generation config that holds them.

Nothing here but the generation config imports torch or transformers, so that commands can read settings fast.
"""

from .adaptive import AdaptiveConfig
from .autoregressive import AutoregressiveConfig
from .diffusion_forcing import DiffusionForcingConfig
from .sampler_config import register_sampler_config
from .speculative_wavefront import SpeculativeWavefrontConfig

for _config in (AutoregressiveConfig, AdaptiveConfig, DiffusionForcingConfig, SpeculativeWavefrontConfig):
    register_sampler_config(_config)

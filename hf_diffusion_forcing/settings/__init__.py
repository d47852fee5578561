"""What a call may say: the settings of samplers, presets, and the generation config that holds them.

Nothing here but the generation config imports torch or transformers, so that commands can read settings fast.
"""

# Each registers its sampler's name.
from . import adaptive, autoregressive, diffusion_forcing, speculative_wavefront

__all__ = ["adaptive", "autoregressive", "diffusion_forcing", "speculative_wavefront"]

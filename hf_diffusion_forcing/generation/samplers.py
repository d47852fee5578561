"""The samplers by name."""

from ..settings.autoregressive import AutoregressiveConfig
from ..settings.sampler_config import register_sampler_config
from .adaptive import Adaptive
from .diffusion_forcing import DiffusionForcing
from .sampler import Sampler, TickingSampler
from .speculative_wavefront import SpeculativeWavefront
from .token_by_token import TokenByToken


class Autoregressive(Sampler):
    """`sampler="autoregressive"`: transformers' own loop; the mixin passes it depth and noise. `TokenByToken` decodes
    rows that join and leave."""

    config_class = AutoregressiveConfig
    has_ticks = False
    is_lossless = True

    @classmethod
    def ticking(cls) -> type[TickingSampler]:
        return TokenByToken


SAMPLERS: dict[str, type[Sampler]] = {}
"""Every sampler by name (`config_class.sampler`)."""


def register_sampler(sampler_class: type[Sampler]) -> type[Sampler]:
    """Class decorator: lets calls and generation configs name a sampler.

    Raises:
        ValueError: the name belongs to another sampler's settings.
    """
    register_sampler_config(sampler_class.config_class)
    SAMPLERS[sampler_class.config_class.sampler] = sampler_class
    return sampler_class


for _sampler in (Autoregressive, Adaptive, DiffusionForcing, SpeculativeWavefront):
    register_sampler(_sampler)


def with_ticks() -> str:
    """The samplers with ticks, for the text of an error."""
    return " or ".join(repr(name) for name, sampler in SAMPLERS.items() if sampler.has_ticks)


def check_model(sampler: str, model) -> None:
    """Refuse a sampler that does not work with the model.

    Raises:
        ValueError: the sampler needs an injected embedding but the model has none.
    """
    if SAMPLERS[sampler].needs_injected_embedding and not model.has_injected_embedding:
        raise ValueError(
            f"sampler={sampler!r} needs a model with an injected embedding; {type(model).__name__} has none. Use "
            "sampler='speculative_wavefront'."
        )

"""How much memory the keys and values of a seat take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..generation.samplers import SAMPLERS, check_model
from ..settings.presets import PRESET_SAMPLERS
from .budget import bytes_per_position, entry_bytes

WAYS: dict[str, dict[str, Any]] = {
    "autoregressive": {"sampler": "autoregressive"},
    "autoregressive, shared": {"sampler": "autoregressive", "kv_sharing": "last"},
    "adaptive": {"sampler": "adaptive"},
} | {preset: {"sampler": sampler, "sampler_preset": preset} for preset, sampler in PRESET_SAMPLERS.items()}
"""Ways to decode, by name: keywords of `generate()`."""

GIB = 2**30


@dataclass(frozen=True)
class SeatSize:
    """What one way to decode keeps.

    Attributes:
        name: of the way, a key of `WAYS`.
        kv_sharing: of its cache.
        entries: entries a position, over all layers.
        bytes_per_position: of keys and values.
    """

    name: str
    kv_sharing: str | int
    entries: int
    bytes_per_position: int

    def seats(self, cache_bytes: int, positions: int) -> int:
        """Whole seats of so many positions that fit."""
        return cache_bytes // (self.bytes_per_position * (positions + 1))


def seat_sizes(config: PreTrainedConfig, dtype: torch.dtype) -> list[SeatSize]:
    """The sizes for every way to decode that a model has. Its weights are not needed.

    Args:
        config: of a recurrent-depth model.
        dtype: of keys and values.
    """
    device = torch.device("meta")
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    layers = entry_bytes(model, device)
    sizes = []
    for name, keywords in WAYS.items():
        try:
            check_model(keywords["sampler"], model)
        except ValueError:
            continue  # not for this family
        settings = model.decoding_config(None, **keywords).sampler_config
        cache = model.new_cache(settings.deepest, settings.kv_sharing)
        readouts = SAMPLERS[keywords["sampler"]].ticking().readouts
        entries = bytes_per_position([1] * len(layers), cache, readouts)
        sizes.append(SeatSize(name, settings.kv_sharing, entries, bytes_per_position(layers, cache, readouts)))
    return sizes

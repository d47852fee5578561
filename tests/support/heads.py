"""Decoding heads that were fitted to nothing."""

import copy

import torch

from hf_diffusion_forcing.fitting import parts
from hf_diffusion_forcing.models.decoding_heads import DecodingHeads, ExitRisk, FittedModel


def random_heads(model, depths=(1, 2), extra_tokens=3, seed=0, scale=1.0) -> DecodingHeads:
    """Heads of a model with random tensors: their drafts, guesses and exits are arbitrary.

    Args:
        scale: factor on every tensor; NaN makes all of them NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    size = model.config.hidden_size
    channels = model.initialize_state(
        torch.zeros(1, 1, size), torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    ).shape[-1]
    tensors = {}
    for depth in depths:
        tensors |= parts.first_readout(depth, channels, 3, generator)
    if extra_tokens:
        tensors |= parts.first_extra(size, 5, generator)
    tensors |= parts.first_probe(channels, 3, generator)
    tensors |= first_start(size, channels, generator)
    tensors = {name: scale * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    risk = ExitRisk(threshold=0.4, epsilon=0.1, confidence=0.9, tokens=100)
    return DecodingHeads(FittedModel.of(model.config), tensors, extra_tokens, risk)


def first_start(size: int, channels: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A start head of rank 3 that keeps the size of its input."""
    return {
        "start.down": parts.small(generator, 3, size + channels),
        "start.up": parts.small(generator, channels, 3),
        "start.mean": torch.zeros(channels),
    }


def with_start_head(model, seed=0, scale=1.0):
    """A copy of a model, with a random start head and no other heads."""
    size, model = model.config.hidden_size, copy.copy(model)
    tensors = first_start(size, size, torch.Generator().manual_seed(seed))
    model.decoding_heads = DecodingHeads(
        FittedModel.of(model.config), {name: scale * tensor for name, tensor in tensors.items()}
    )
    return model

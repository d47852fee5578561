"""Checks of the sizes in a config."""

import math

from transformers import PreTrainedConfig


def check_sizes(config: PreTrainedConfig, *names: str) -> None:
    """ValueError that names any size below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1.")


def check_positive(config: PreTrainedConfig, *names: str) -> None:
    """ValueError for a number that is not positive and finite."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name}={getattr(config, name)} must be a positive number.")


def check_heads(config: PreTrainedConfig, heads: str) -> None:
    """ValueError for heads that grouped-query attention or RoPE cannot use.

    Args:
        heads: the config's name for the number of query heads.
    """
    if getattr(config, heads) % config.num_key_value_heads:
        raise ValueError(
            f"num_key_value_heads={config.num_key_value_heads} must divide {heads}={getattr(config, heads)}."
        )
    if config.head_dim < 2 or config.head_dim % 2:
        raise ValueError(f"head_dim={config.head_dim} must be even and positive: RoPE rotates pairs of channels.")

"""Refuses caches of other classes."""

from typing import Any

from .recurrent_depth_cache import RecurrentDepthCache


def check_cache(cache: Any) -> None:
    """TypeError unless `cache` is a `RecurrentDepthCache`."""
    if not isinstance(cache, RecurrentDepthCache):
        raise TypeError(
            f"cache is a {type(cache).__name__}; a recurrent-depth model needs a RecurrentDepthCache: "
            "pass one that generate() returned, or model.new_cache(...)."
        )

"""Settings of adaptive early exit."""

from dataclasses import dataclass
from typing import ClassVar

from .early_exit import EarlyExitConfig


@dataclass(kw_only=True)
class AdaptiveConfig(EarlyExitConfig):
    """Settings of `sampler="adaptive"`: one token at a time, refined until it converges, at most `num_steps` times."""

    sampler: ClassVar[str] = "adaptive"

"""Settings of autoregressive decoding."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from .lossless import LosslessConfig
from .sampler_config import SamplerConfig


@dataclass(kw_only=True)
class AutoregressiveConfig(LosslessConfig):
    """Settings of `sampler="autoregressive"`: one token at a time, `num_steps` recurrences each."""

    sampler: ClassVar[str] = "autoregressive"


@dataclass(kw_only=True)
class PlainDecodingConfig(SamplerConfig):
    """Settings of plain transformers decoding: no sampler is given, or `sampler=False`.

    Supports beam search and the other modes of transformers; sampling draws from torch's global generator.
    """

    sampler: ClassVar[Literal[False]] = False  # type: ignore[assignment]  # it has no name

"""The base classes of samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from typing import ClassVar

import torch

from ..cache import RecurrentDepthCache, RoundedCapacity, RoundedExtents
from ..models.interface import RecurrentDepthInterface
from ..settings.sampler_config import SamplerConfig
from .batch_invariant import BatchInvariant
from .choice import Prefix, choose
from .output import SamplerStats
from .recorder import Recorder
from .row import Row
from .static_ticks import StaticTicks

Reading = Generator[None, None, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
"""Prompts being read, step by step."""


class Sampler(ABC):
    """A way to decode rows.

    The class attributes tell the rest of the package what a sampler needs and does.

    Attributes:
        config_class: its settings class.
        needs_injected_embedding: whether the core must read the injected embedding at every recurrence.
        has_ticks: whether it decodes in ticks of its own; otherwise transformers' loop decodes.
        is_lossless: whether its text equals autoregression's.
        ticks_read_out: whether prelude and coda run in every tick, and not once per token.
    """

    config_class: ClassVar[type[SamplerConfig]]
    needs_injected_embedding: ClassVar[bool] = False
    has_ticks: ClassVar[bool] = True
    is_lossless: ClassVar[bool] = False
    ticks_read_out: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def ticking(cls) -> type[TickingSampler]:
        """The class that decodes in a loop, where rows join and leave between ticks."""


class TickingSampler(Sampler):
    """A sampler that decodes in ticks; a subclass implements `read`, `begin` and `tick`.

    Args:
        model: implements `RecurrentDepthInterface`.
        cache: has the rows' seats.
        config: the sampler's settings, every depth filled in.
        device: device of the prompt and the wave.
        chunk: positions of a prompt to read at once; all when None.
        recorder: fills the trace; None without one.

    Attributes:
        readouts: entries of a coda layer that it keeps for every position.
        stats: counts of the work.
    """

    readouts: ClassVar[int] = 1

    def __init__(
        self,
        model: RecurrentDepthInterface,
        cache: RecurrentDepthCache,
        config: SamplerConfig,
        device: torch.device,
        chunk: int | None = None,
        recorder: Recorder | None = None,
    ):
        if config.is_exact:
            model = BatchInvariant(model, device)  # type: ignore[assignment]  # it has the verbs
            cache = RoundedExtents(cache)  # type: ignore[assignment]  # it has all that samplers call
        elif config.is_compiled:
            model = StaticTicks(model, cache)  # type: ignore[assignment]  # as above
            cache = RoundedCapacity(cache)  # type: ignore[assignment]
        self.model, self.cache, self.config = model, cache, config
        self.device, self.chunk, self.recorder = device, chunk, recorder
        self.stats = SamplerStats()

    @classmethod
    def ticking(cls) -> type[TickingSampler]:
        return cls

    @abstractmethod
    def read(self, rows: list[Row], first_seat: int) -> Reading:
        """Read the prompts of rows that take the seats from `first_seat` on, in steps between which other rows may
        tick.

        Returns:
            The token each row's prompt predicts, int64 [rows]; its logits and scores, [rows, vocabulary] each.
        """

    @abstractmethod
    def begin(self, row: Row) -> None:
        """Start the wave of a row whose first token is committed."""

    @abstractmethod
    def tick(self, rows: list[Row]) -> None:
        """Refine the waves of all rows, commit what is final, and move the waves on."""

    def first_tokens(self, rows: list[Row], logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `read` returns, from the logits of the prompts' last positions, [1, rows, vocabulary]."""
        facts = [(row.id_at(row.front), row.front, row.seed) for row in rows]
        moved = torch.tensor([[column] for column in zip(*facts, strict=True)], device=logits.device)
        ids, positions, seeds = moved.unbind()
        prefixes = [(row.call.choice, Prefix(row.number, len(row.ids), len(row.ids))) for row in rows]
        predictions, scores = choose(logits, ids, positions, seeds, prefixes)
        return predictions[0], logits[0], scores[0]

    def record(self, abandoned: bool = False) -> None:
        """Add the finished tick to the trace."""
        if self.recorder is not None:
            self.recorder.record(abandoned)

    def end(self, row: Row) -> None:
        """Drop the wave of a row that was ended from outside."""
        row.wave = []

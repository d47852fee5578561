"""What a sampler is, and what it works with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers.generation.streamers import BaseStreamer

from ..cache import RecurrentDepthCache
from ..models.interface import RecurrentDepthInterface
from ..settings.sampler_configs import SamplerConfig
from .choice import TokenChoice
from .output import SamplerStats
from .recorder import Recorder
from .row import Row
from .stopping import Stopping

SAMPLERS: dict[str, type[Sampler]] = {}
"""The samplers, by the name that `sampler=` knows them by."""


def register_sampler(sampler: type[Sampler]) -> type[Sampler]:
    """Class decorator: make a sampler known under the name of its settings."""
    SAMPLERS[sampler.config_class.sampler] = sampler
    return sampler


@dataclass(eq=False)
class Tools:
    """What a sampler works with, of one call.

    Attributes:
        choice: of the next tokens, from logits.
        stopping: of rows.
        stats: counts of the work.
        recorder: of a trace; None without one.
        streamer: gets each committed token once, in order.
        keeps_logits, keeps_scores: whether rows keep what each token was chosen by, before and after the processors.
        device: of the prompt and the wave.
        chunk: positions of a prompt that are read at once; all when None.
    """

    choice: TokenChoice
    stopping: Stopping
    stats: SamplerStats
    recorder: Recorder | None
    streamer: BaseStreamer | None
    keeps_logits: bool
    keeps_scores: bool
    device: torch.device
    chunk: int | None = None


class Sampler(ABC):
    """How the rows of a loop are decoded.

    A subclass says what a tick is. What other parts of the package need to know of it are its class attributes.

    Attributes:
        config_class: its settings.
        needs_injected_embedding: whether it can decode only models whose core reads the prompt at every recurrence.
        has_ticks: whether it has a loop of its own; without, transformers' decodes.
        is_lossless: whether its text is autoregression's.
    """

    config_class: ClassVar[type[SamplerConfig]]
    needs_injected_embedding: ClassVar[bool] = False
    has_ticks: ClassVar[bool] = True
    is_lossless: ClassVar[bool] = False


class TickingSampler(Sampler):
    """A sampler with a loop of its own.

    Args:
        model: speaks the verbs of `RecurrentDepthInterface`.
        cache: the seats of the rows.
        config: the sampler's settings, every depth filled in.
        tools: of the call.
    """

    def __init__(self, model: RecurrentDepthInterface, cache: RecurrentDepthCache, config: SamplerConfig, tools: Tools):
        self.model, self.cache, self.config, self.tools = model, cache, config, tools
        self.stats, self.recorder = tools.stats, tools.recorder

    @abstractmethod
    def read(self, rows: list[Row], first_seat: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read the prompts of rows that take the seats from `first_seat` on.

        Returns:
            The token each row's prompt predicts, int64 [rows] on the host; the logits and scores it was chosen by,
            [rows, vocabulary] each.
        """

    @abstractmethod
    def begin(self, row: Row) -> None:
        """Lay out the wave of a row whose first token is committed."""

    @abstractmethod
    def tick(self, rows: list[Row]) -> None:
        """Refine the waves of all rows, commit what is final, and move the waves on."""

    def first_tokens(self, rows: list[Row], logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `read` returns, from the logits of the prompts' last positions, [1, rows, vocabulary]."""
        facts = [(row.ids[-1], row.front, row.seed) for row in rows]
        moved = torch.tensor([[column] for column in zip(*facts, strict=True)], device=logits.device)
        lengths = [len(row.ids) for row in rows]
        predictions, scores = self.tools.choice(logits, *moved.unbind(), rows, lengths)
        return predictions[0], logits[0], scores[0]

    def end(self, row: Row) -> None:
        """A row has been ended from outside: its wave is dropped."""
        row.wave = []

    def commit(self, row: Row, token: int, logits: torch.Tensor, scores: torch.Tensor) -> bool:
        """Make a token final; returns whether it ends the row.

        Args:
            logits, scores: [vocabulary], what the token was chosen by; copied where they are kept.
        """
        tools = self.tools
        row.commit(token)
        if tools.keeps_logits:
            row.logits.append(logits.to(tools.choice.device, torch.float32, copy=True))
        if tools.keeps_scores:
            row.scores.append(scores.to(tools.choice.device, torch.float32, copy=True))
        if tools.streamer is not None:
            tools.streamer.put(torch.tensor([token]))
        row.has_ended = tools.stopping.has_ended(row, row.scores if tools.keeps_scores else None)
        return row.has_ended

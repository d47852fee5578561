"""Reading the prompts of rows, at full depth."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from ..cache import Placement, RecurrentDepthCache
from ..models.interface import RecurrentDepthInterface
from ..settings.sampler_config import SamplerConfig
from .output import SamplerStats
from .row import Row

WATCHED = 64
"""Positions at the end of a prompt that watchers look at."""


class PromptWatcher(Protocol):
    """Watches the prompt converge: called after every recurrence of the last chunk."""

    def __call__(self, states: torch.Tensor, before: torch.Tensor, at: Placement, prompt: Prompt) -> None:
        """Called after a recurrence: states [1, n, channels] after and before it, and the placement."""


@dataclass(eq=False)
class Prompt:
    """A chunk of the prompts of several rows, end to end.

    Attributes:
        rows: the rows, in the order of their seats.
        ids: int64 [1, n]; 0 where a prompt was given as embeddings alone.
        positions, seeds, seats: int64 [1, n]; seats are relative to `first_seat`.
        widths: positions of each row.
        starts: first position of each row.
        first_seat: seat of the first row.
        embeds: [1, n, channels], the prompts' embeddings where ids do not give them.
        block: bool [1, n], positions that also see the later ones among their row's; None if there are none.
    """

    rows: list[Row]
    ids: torch.Tensor
    positions: torch.Tensor
    seeds: torch.Tensor
    seats: torch.Tensor
    widths: list[int]
    starts: list[int]
    first_seat: int
    embeds: torch.Tensor | None = None
    block: torch.Tensor | None = None

    @classmethod
    def of(cls, rows: list[Row], spans: list[tuple[int, int]], first_seat: int, device: torch.device) -> Prompt:
        """The positions from start to stop (exclusive) of each row; all rows or none have embeddings."""
        cells = [
            (row.id_at(position), position, row.seed, seat, row.is_in_block(position))
            for seat, (row, (start, stop)) in enumerate(zip(rows, spans, strict=True))
            for position in range(start, stop)
        ]
        *moved, block = torch.tensor([[column] for column in zip(*cells, strict=True)], device=device).unbind()
        widths = [stop - start for start, stop in spans]
        given = [
            row.embeds[start:stop] for row, (start, stop) in zip(rows, spans, strict=True) if row.embeds is not None
        ]
        embeds = torch.cat(given)[None].to(device) if given else None
        blocks = block.bool() if any(row.block for row in rows) else None
        return cls(rows, *moved, widths, [start for start, _ in spans], first_seat, embeds, blocks)

    def place(self, cache: RecurrentDepthCache, skipped: list[int] | None = None) -> Placement:
        """The placement of the chunk without each row's first `skipped` positions."""
        skipped = skipped or [0] * len(self.rows)
        widths = [width - skip for width, skip in zip(self.widths, skipped, strict=True)]
        starts = [start + skip for start, skip in zip(self.starts, skipped, strict=True)]
        positions, seats = self.without(self.positions, skipped), self.without(self.seats, skipped)
        at = cache.place_prompt(positions, seats, widths, starts, self.first_seat)
        at.ids = self.without(self.ids, skipped)
        if self.block is not None:
            at.open_block(self.without(self.block, skipped))
        return at

    def without(self, x: torch.Tensor, skipped: list[int]) -> torch.Tensor:
        """[1, n, ...] without each row's first `skipped` positions."""
        if len(self.rows) == 1:
            return x[:, skipped[0] :]
        parts = zip(x.split(self.widths, dim=1), skipped, strict=True)
        return torch.cat([part[:, skip:] for part, skip in parts], dim=1)

    @property
    def lasts(self) -> torch.Tensor:
        """Index of each row's last position: int64 [rows]."""
        return torch.tensor(self.widths, device=self.ids.device).cumsum(0) - 1

    def watched(self, limit: int = WATCHED) -> torch.Tensor:
        """Indices of the last positions of every row, equally many of each."""
        count = min(limit, *self.widths)
        return (self.lasts[:, None] - torch.arange(count - 1, -1, -1, device=self.ids.device)).flatten()


class PromptReader:
    """Reads prompts for `prompt_steps` recurrences.

    Args:
        model, cache, config: those of the sampler.
        stats: counts the core passes.
        device: device of the ids.
        chunk: positions of a row to read at once; all when None.
    """

    def __init__(
        self,
        model: RecurrentDepthInterface,
        cache: RecurrentDepthCache,
        config: SamplerConfig,
        stats: SamplerStats,
        device: torch.device,
        chunk: int | None,
    ):
        self.model, self.cache, self.config, self.stats = model, cache, config, stats
        self.device, self.chunk = device, chunk

    def read(
        self, rows: list[Row], first_seat: int, watcher: PromptWatcher | None = None
    ) -> Generator[None, None, torch.Tensor]:
        """Run the model over the prompts, one recurrence a step; other rows may tick between the steps.

        Returns:
            Logits of each row's last position, [1, rows, vocabulary].
        """
        chunks = list(self._spans(rows, 1 if watcher is None else WATCHED))
        for index, spans in enumerate(chunks):
            prompt = Prompt.of(rows, spans, first_seat, self.device)
            is_last = index == len(chunks) - 1
            states, at = yield from self.refine(prompt, watcher if is_last else None)
            logits = self.model.decode(states, at, logits_to_keep=prompt.lasts)
        lasts = states.index_select(1, prompt.lasts.to(states.device)).split(1, dim=1)
        for row, state in zip(rows, lasts, strict=True):
            row.cached, row.prompt_state = row.front + 1, state
        return logits

    def _spans(self, rows: list[Row], at_last: int) -> Iterator[list[tuple[int, int]]]:
        """The positions each row reads, chunk by chunk.

        Chunks begin at multiples of `chunk`. Their borders, which affect the result when keys and values are shared,
        then depend neither on padding nor on the other rows, and a prefix is read alike in every prompt. All rows end
        with the last chunk, so those with fewer chunks begin later.

        Args:
            at_last: positions that a row's last chunk has at least, if its prompt has.
        """
        borders = [self._borders(row, at_last) for row in rows]
        most = max(map(len, borders))
        for step in range(most - 1):
            own = [max(0, step - most + len(each)) for each in borders]
            yield [
                (each[index], each[index + (step >= most - len(each))])
                for each, index in zip(borders, own, strict=True)
            ]

    def _borders(self, row: Row, at_last: int) -> list[int]:
        """Where a row's chunks begin, and where the last one ends."""
        first, end = row.cached, row.front + 1
        if self.chunk is None:
            return [first, end]
        inner = range(first + self.chunk - first % self.chunk, end, self.chunk)
        return [first, *(border for border in inner if end - border >= at_last), end]

    def refine(
        self, prompt: Prompt, watcher: PromptWatcher | None
    ) -> Generator[None, None, tuple[torch.Tensor, Placement]]:
        """One recurrence of a chunk a step.

        Returns:
            Its states after the last one, [1, n, channels], and its placement.
        """
        model, steps = self.model, self.config.prompt_steps
        at = prompt.place(self.cache)
        e = model.embed(prompt.ids, at, prompt.embeds)
        states = model.initialize_state(e, prompt.positions, prompt.seeds, self.config.state_scale)
        for depth in range(steps):
            before, states = states, model.recur(states, e, at, depth)
            self.stats.prefill_core_passes += 1
            if watcher is not None:
                watcher(states, before, at, prompt)
            if depth < steps - 1:
                yield
        self.cache.settle(at, steps)
        return states, at

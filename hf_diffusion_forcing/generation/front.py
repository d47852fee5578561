"""Ticks that refine every row's front position alone."""

from __future__ import annotations

import torch

from ..cache import Placement
from .early_exit import EarlyExitSampler
from .position import Position
from .row import Row
from .state_starts import StateStarts
from .wave import Wave

EMBEDDING = "sampler.embedding"
"""The key under which a front's embedding is remembered."""


class FrontSampler(EarlyExitSampler):
    """A sampler that can refine one position of every row at a time.

    Each row exits at its own pace: the prelude runs in ticks where some row has a new token, the coda in ticks where
    some row exits (or in every tick, for a criterion that reads logits).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.starts = StateStarts(self.model, self.config)
        self.at: Placement | None = None
        """The fronts' placement; renewed when one of them has moved."""

    def end(self, row: Row) -> None:
        super().end(row)
        self.at = None

    def tick_fronts(self, rows: list[Row], budget: int) -> int:
        """Run one recurrence of every row's front, its only position; returns how many rows have not exited.

        Args:
            budget: recurrences at which a front exits, whatever the criterion says.
        """
        model, cache = self.model, self.cache
        wave = Wave(rows, self.device)
        if self.at is None:
            self.at = cache.place_rows(wave.positions, wave.seats, wave.widths, wave.extents, wave.start)
            self.at.ids = wave.ids  # a tick without new tokens does not embed any
        at = self.at
        at.depth = 0 if cache.kv_sharing == "last" else wave.steps
        refinement = self.refinement(wave, 1, budget)

        # 1. Run the prelude if there are new tokens. 2. Keep states, and start new ones.
        e = None if wave.new else refinement.recall(EMBEDDING)
        e = model.embed(wave.ids, at) if e is None else e
        refinement.remember(EMBEDDING, e)
        refinement.before = wave.carry(self.states, self.starts.take(wave, e, self.states))

        # 3. Run one recurrence.
        self.states = refinement.states = model.recur(refinement.before, e, at, 0)
        refinement.before = refinement.before.to(self.states.device)  # the core may be on another device

        # 4. and 5. Decide which rows exit, and read out what they predict.
        scores = self._read_out(wave, at, refinement) if self.criterion.needs_logits else None
        exits = self.has_converged(refinement) | (wave.steps.to(self.states.device) + 1 >= budget)
        traced = self.traced(refinement)
        facts = [exits, *traced.values()]
        exits, *values = torch.stack([fact[0].to(exits.device, torch.long) for fact in facts]).tolist()
        predictions: list[int | None] = [None] * len(rows)
        if any(exits):
            scores = self._read_out(wave, at, refinement) if scores is None else scores
            chosen = refinement.predictions[0].tolist()
            predictions = [token if leaves else None for token, leaves in zip(chosen, exits, strict=True)]
        values = dict(zip(traced, map(wave.split, values), strict=True))
        self.observe(wave, self.states, 1, wave.split(predictions), values)
        self.count(wave, 1)
        self.memory = refinement.remembered
        wave.settle()

        # 6. and 7. Commit it; the next position becomes the front.
        for seat, (row, token) in enumerate(zip(rows, predictions, strict=True)):
            if token is None:
                row.wave[0].steps += 1
                continue
            self.at = None
            token = row.commit(token, refinement.logits[0, seat], scores[0, seat])
            if not row.has_ended:
                row.wave = [Position(token)]
        self.record()
        return predictions.count(None)

    def _read_out(self, wave: Wave, at: Placement, refinement) -> torch.Tensor:
        """Set logits and predictions of the current states; returns the processed scores.

        A row that does not exit yet has its coda keys and values overwritten later.
        """
        refinement.logits = self.model.decode(refinement.states, at)
        refinement.predictions, scores = wave.choose(refinement.logits)
        return scores

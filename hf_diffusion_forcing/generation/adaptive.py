"""Adaptive early exit: one token at a time, each refined until it has converged (arXiv 2502.05171, section 6.1)."""

import torch

from ..cache import Placement
from ..settings.adaptive import AdaptiveConfig
from .early_exit import EarlyExitSampler
from .row import Position, Row
from .state_starts import StateStarts
from .wave import Wave


class Adaptive(EarlyExitSampler):
    """`sampler="adaptive"`: a tick is one recurrence of every row's front position.

    Rows exit and go on at their own pace: the prelude runs when some row has a new token, the coda when some row exits
    (or in every tick, for a criterion that reads logits).
    """

    config_class = AdaptiveConfig
    config: AdaptiveConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.starts = StateStarts(self.model, self.config.state_scale)
        self.at: Placement | None = None
        """Where the fronts stand; made anew when one of them has moved."""

    def begin(self, row: Row) -> None:
        row.wave = [Position(row.ids[-1])]
        self.at = None

    def end(self, row: Row) -> None:
        super().end(row)
        self.at = None

    def tick(self, rows: list[Row]) -> None:
        model, cache, budget = self.model, self.cache, self.config.num_steps
        wave = Wave(rows, self.device)
        if self.at is None:
            self.at = cache.place_rows(wave.positions, wave.seats, wave.widths, wave.extent, wave.start)
        at = self.at
        at.depth = 0 if cache.kv_sharing == "last" else wave.steps
        refinement = self.refinement(wave, 1, budget)

        # 1. The prelude, when there are new tokens. 2. States go on, new ones start.
        e = model.embed(wave.ids, at) if wave.new else refinement.recall("sampler.embedding")
        refinement.remember("sampler.embedding", e)
        refinement.before = wave.carry(self.states, self.starts.take(wave, e))

        # 3. One recurrence.
        self.states = refinement.states = model.recur(refinement.before, e, at, 0)
        refinement.before = refinement.before.to(self.states.device)  # the core may stand on another device

        # 4. and 5. Which rows exit, and what they predict.
        scores = self._read_out(wave, at, refinement) if self.criterion.needs_logits else None
        exits = self.has_converged(refinement) | (wave.steps.to(self.states.device) + 1 >= budget)
        facts = [exits, *self.exit_bits(refinement)]
        exits, *bits = torch.stack([fact[0].to(exits.device, torch.long) for fact in facts]).tolist()
        predictions = [None] * len(rows)
        if any(exits):
            scores = self._read_out(wave, at, refinement) if scores is None else scores
            chosen = refinement.predictions[0].tolist()
            predictions = [token if leaves else None for token, leaves in zip(chosen, exits, strict=True)]
        self.observe(wave, self.states, 1, wave.split(predictions), list(map(wave.split, bits)))
        self.count(wave, 1)
        self.memory = refinement.remembered
        wave.settle()

        # 6. and 7. They are committed, and the next position is the front.
        for seat, (row, token) in enumerate(zip(rows, predictions, strict=True)):
            if token is None:
                row.wave[0].steps += 1
                continue
            self.at = None
            if not row.commit(token, refinement.logits[0, seat], scores[0, seat]):
                row.wave = [Position(token)]
        self.record()

    def _read_out(self, wave: Wave, at: Placement, refinement) -> torch.Tensor:
        """Logits and predictions of the states as they are; returns the scores they were chosen by.

        The coda's keys and values of a row that goes on are written again when it exits.
        """
        refinement.logits = self.model.decode(refinement.states, at)
        refinement.predictions, scores = wave.choose(refinement.logits)
        return scores

"""Samplers that stop refining a position once an exit criterion is met."""

from __future__ import annotations

import torch

from ..hooks.refinement import Refinement
from ..settings.early_exit import EarlyExitConfig
from .adaptive_prompt import AdaptivePromptReader
from .prompt import PromptReader, PromptWatcher
from .sampler import TickingSampler
from .trace import as_bits, from_bits
from .verdict import verdict
from .wave import Wave


class EarlyExitSampler(TickingSampler):
    """A sampler with an exit criterion."""

    config: EarlyExitConfig

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.criterion = self.config.criterion()
        self.criterion.check_model(self.model)
        self.states: torch.Tensor | None = None
        """[1, n, channels], of the last tick's wave."""
        self.memory: dict[str, torch.Tensor] = {}
        """The hooks' memory of the last tick, [1, n, ...] each."""
        if self.recorder is not None:
            trace = self.recorder.trace
            trace.criterion = getattr(self.criterion, "name", type(self.criterion).__name__)
            trace.threshold = getattr(self.criterion, "threshold", None)

    def read(self, rows, first_seat, watcher: PromptWatcher | None = None):
        settings = self.model, self.cache, self.config, self.stats, self.device, self.chunk
        if self.config.adaptive_prefill:
            reader = AdaptivePromptReader(*settings, criterion=self.criterion)
        else:
            reader = PromptReader(*settings)
        logits = yield from reader.read(rows, first_seat, watcher)
        return self.first_tokens(rows, logits)

    def refinement(self, wave: Wave, recurrences: int, budget: int) -> Refinement:
        """The `Refinement` that hooks see in the tick that begins."""
        return Refinement(
            positions=wave.positions,
            input_ids=wave.ids,
            fresh=wave.fresh,
            rows=wave.seats,
            steps=wave.steps,
            recurrences=recurrences,
            budget=budget,
            seeds=wave.seeds,
            model=self.model,
            memory=wave.recall(self.memory),
        )

    def has_converged(self, refinement: Refinement) -> torch.Tensor:
        """The exit criterion's verdict on each position, bool [1, n]."""
        return verdict(self.criterion, refinement)

    def exit_bits(self, refinement: Refinement) -> list[torch.Tensor]:
        """The criterion's values as integers for the trace, int64 [1, n]; empty if there are none.

        Raises:
            ValueError: the criterion set values of another shape.
        """
        values = refinement.exit_values
        if self.recorder is None or values is None:
            return []
        if values.shape != refinement.positions.shape:
            raise ValueError(
                f"{type(self.criterion).__name__} set exit_values of shape {tuple(values.shape)}: "
                f"{tuple(refinement.positions.shape)} is needed, one value per position."
            )
        return [as_bits(values)]

    def observe(
        self,
        wave: Wave,
        states: torch.Tensor,
        core_passes: int,
        predictions: list[list[int | None]],
        bits: list[list[list[int]]],
    ) -> None:
        """Record what the current tick did to every row; `bits` is `exit_bits` on the host, split by row."""
        if self.recorder is None:
            return
        latents = self.recorder.latents(states)
        values = bits[0] if bits else [None] * len(wave.rows)
        begin = 0
        for row, width, predicted, exits in zip(wave.rows, wave.widths, predictions, values, strict=True):
            self.recorder.observe(
                row,
                self.stats.ticks + 1,
                core_passes,
                [position.steps + core_passes for position in row.wave],
                predicted,
                None if exits is None else from_bits(exits),
                None if latents is None else latents[begin : begin + width],
            )
            begin += width

    def count(self, wave: Wave, core_passes: int) -> None:
        """Count a tick."""
        self.stats.ticks += 1
        self.stats.core_passes += core_passes
        self.stats.positions_refined += core_passes * len(wave)

"""Samplers that stop refining a position once an exit criterion is met."""

from __future__ import annotations

import torch

from ..hooks.refinement import Refinement
from ..hooks.settling import remaining_sway_of
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

    def traced(self, refinement: Refinement) -> dict[str, torch.Tensor]:
        """What the trace needs of a tick, as integers, int64 [1, n] each; empty without a trace.

        Returns:
            exit_values: the criterion's values as bits, if it has any. settled: whether the remaining recurrences are
            estimated not to change the prediction, if the tick has logits when the criterion is called.

        Raises:
            ValueError: the criterion set values of another shape.
        """
        if self.recorder is None:
            return {}
        facts, values = {}, refinement.exit_values
        if values is not None:
            if values.shape != refinement.positions.shape:
                raise ValueError(
                    f"{type(self.criterion).__name__} set exit_values of shape {tuple(values.shape)}: "
                    f"{tuple(refinement.positions.shape)} is needed, one value per position."
                )
            facts["exit_values"] = as_bits(values)
        if refinement.logits is not None:
            # The estimate is of the likeliest token; a processor may have chosen another.
            is_likeliest = refinement.predictions == refinement.logits.argmax(-1).to(refinement.predictions.device)
            settled = remaining_sway_of(refinement) < 1
            facts["settled"] = (settled.to(is_likeliest.device) & is_likeliest).long()
        return facts

    def observe(
        self,
        wave: Wave,
        states: torch.Tensor,
        core_passes: int,
        predictions: list[list[int | None]],
        traced: dict[str, list[list[int]]],
    ) -> None:
        """Record what the current tick did to every row; `traced` is that of `traced()` on the host, split by row."""
        if self.recorder is None:
            return
        latents = self.recorder.latents(states)
        unknown = [None] * len(wave.rows)
        values, settled = (traced.get(name, unknown) for name in ("exit_values", "settled"))
        begin = 0
        for row, width, predicted, exits, flags in zip(
            wave.rows, wave.widths, predictions, values, settled, strict=True
        ):
            # A sampled token depends on noise that the estimate does not know.
            is_known = flags is not None and not row.call.choice.is_sampling
            self.recorder.observe(
                row,
                self.stats.ticks + 1,
                core_passes,
                [position.steps + core_passes for position in row.wave],
                predicted,
                None if exits is None else from_bits(exits),
                None if latents is None else latents[begin : begin + width],
                list(map(bool, flags)) if is_known else [],
            )
            begin += width

    def count(self, wave: Wave, core_passes: int) -> None:
        """Count a tick."""
        self.stats.ticks += 1
        self.stats.core_passes += core_passes
        self.stats.positions_refined += core_passes * len(wave)

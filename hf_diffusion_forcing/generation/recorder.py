"""Records what every tick does to every row."""

from __future__ import annotations

import torch

from .row import Row
from .trace import Trace, WaveTick


class Recorder:
    """Fills a `Trace`: `observe()` while a tick runs, `record()` when it is over.

    Args:
        trace: the trace.
        keeps_latents: whether the states are kept too.
    """

    def __init__(self, trace: Trace, keeps_latents: bool):
        self.trace, self.keeps_latents = trace, keeps_latents
        self.observed: dict[Row, WaveTick] = {}
        """The wave of the current tick, by row."""

    def latents(self, states: torch.Tensor) -> torch.Tensor | None:
        """States [1, n, channels] as float32 [n, channels] on the host; None unless they are kept."""
        return states[0].to("cpu", torch.float32) if self.keeps_latents else None

    def observe(
        self,
        row: Row,
        tick: int,
        core_passes: int,
        recurrences: list[int],
        predictions: list[int | None],
        exit_values: list[float | None] | None = None,
        latents: torch.Tensor | None = None,
        settled: list[bool] | None = None,
    ) -> None:
        """Record what the current tick did to a row, before its tokens are committed; see `WaveTick`.

        Args:
            latents: [width, channels] on the host, front first.
        """
        self.observed[row] = WaveTick(
            tick=tick,
            row=row.number,
            start=row.front,
            core_passes=core_passes,
            tokens=[position.token for position in row.wave],
            recurrences=recurrences,
            predictions=predictions,
            exit_values=[None] * len(row.wave) if exit_values is None else exit_values,
            settled=settled or [],
            latents=None if latents is None else latents.clone(),
        )

    def record(self, abandoned: bool = False) -> None:
        """Add the waves of a finished tick to the trace, with the ids committed since they were observed."""
        for row, wave in self.observed.items():
            wave.abandoned = abandoned
            # The front was the row's last committed id.
            wave.committed = row.ids[wave.start + 1 - row.shift :]
            self.trace.append(wave)
        self.observed = {}

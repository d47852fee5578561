"""What ticks take, and how long positions stay in the wave."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import NamedTuple

OUTLIER = 2.0
"""A tick is left out if its seconds over its estimate exceed the median of that ratio by this factor: something else
slowed it down."""
STEADY = 0.01
"""Variance of the estimates, as a share of their squared mean, below which the fitted slope stays near 1."""


class Tick(NamedTuple):
    """One tick.

    Attributes:
        seconds: what it took.
        estimate: what the cost curve says of it.
        tokens: those it committed, per row.
        unsettled: positions that had not converged after it, per row.
    """

    seconds: float
    estimate: float
    tokens: float
    unsettled: float


@dataclass(frozen=True)
class Correction:
    """What a cost curve leaves out: a tick takes `slope` times its estimate, and `seconds` more.

    The curve is measured on an empty cache and around the passes alone. Attention over the text and the loop's own work
    come on top: sampling, checking stops, moving what the device needs.
    """

    slope: float = 1.0
    seconds: float = 0.0

    def __call__(self, estimate: float) -> float:
        return self.slope * estimate + self.seconds


class Pace:
    """The ticks since the last choice."""

    def __init__(self) -> None:
        self.ticks: list[Tick] = []

    def __len__(self) -> int:
        return len(self.ticks)

    @property
    def usual(self) -> list[Tick]:
        """The ticks without those that were held up by something else."""
        limit = OUTLIER * statistics.median(tick.seconds / tick.estimate for tick in self.ticks)
        return [tick for tick in self.ticks if tick.seconds <= limit * tick.estimate]

    @property
    def tick_seconds(self) -> float:
        """The mean."""
        return statistics.fmean(tick.seconds for tick in self.usual)

    @property
    def tokens(self) -> float:
        """All of them, per row."""
        return sum(tick.tokens for tick in self.ticks)

    @property
    def tokens_per_tick(self) -> float:
        """Per row."""
        return self.tokens / len(self.ticks)

    def correction(self) -> Correction:
        """Fitted to the ticks by least squares, with a slope near 1 where their estimates hardly vary."""
        ticks = self.usual
        estimate = statistics.fmean(tick.estimate for tick in ticks)
        excess = statistics.fmean(tick.seconds - tick.estimate for tick in ticks)
        spread = sum((tick.estimate - estimate) ** 2 for tick in ticks) / len(ticks)
        joint = sum((tick.estimate - estimate) * (tick.seconds - tick.estimate - excess) for tick in ticks) / len(ticks)
        slope = 1 + joint / (spread + STEADY * estimate**2)
        seconds = estimate + excess - slope * estimate
        if seconds < 0 or slope <= 0:
            return Correction(slope=(estimate + excess) / estimate)
        return Correction(slope, seconds)

    @property
    def stay(self) -> float:
        """Ticks that a position needs to converge, 1 or more, if any token was committed.

        By Little's law: as many positions are unsettled on average as tokens are committed per tick, times the ticks
        for which each is unsettled. So it is known also where tokens wait for room, or for one slow position.
        """
        return 1 + sum(tick.unsettled for tick in self.ticks) / self.tokens

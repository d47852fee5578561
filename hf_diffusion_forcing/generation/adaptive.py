"""Adaptive early exit: one token at a time, each refined until it converges (arXiv 2502.05171, section 6.1)."""

from ..settings.adaptive import AdaptiveConfig
from .front import FrontSampler
from .position import Position
from .row import Row


class Adaptive(FrontSampler):
    """`sampler="adaptive"`: a tick is one recurrence of every row's front position."""

    config_class = AdaptiveConfig
    ticks_read_out = False
    config: AdaptiveConfig

    def begin(self, row: Row) -> None:
        row.wave = [Position(row.ids[-1])]
        self.at = None

    def tick(self, rows: list[Row]) -> None:
        self.tick_fronts(rows, self.config.num_steps)

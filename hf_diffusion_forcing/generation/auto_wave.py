"""`wavefront="auto"`: chooses how ticks refine positions, and chooses again while decoding."""

from __future__ import annotations

from ..settings.adaptive import AdaptiveConfig
from ..settings.diffusion_forcing import DiffusionForcingConfig
from .cost_curve import CostCurve
from .decision import Decision
from .output import SamplerStats
from .pace import Correction, Pace, Tick
from .wave_choice import AS_MEASURED, fronts_seconds, steady_wave, wave_seconds, waves

WINDOW, TOKENS, LONGEST = 32, 16, 64
"""The choice is reconsidered after `WINDOW` ticks that committed `TOKENS` tokens per row, or after `LONGEST` ticks. The
ticks counted begin after one that commits a token and end with one, so that no token lacks some of its ticks."""
GAIN = 0.97
"""Something else is chosen if it is estimated to take at most this share of the time."""
ALONE = 0.8
"""What a position alone needs of the recurrences that one of the prompt needs, whose neighbours on the left have not
converged either: about as much on texts of the two trained checkpoints (docs/benchmarks/neighbours.md)."""

Way = tuple[int, int] | None
"""Wavefront and inner recurrence; None refines the fronts alone."""


class AutoWave:
    """The choice between waves of all widths and depths, and ticks that refine the fronts alone.

    Args:
        curve: the seconds of passes.
        rows: rows of the call, for which the curve was measured.
        recurrences: how many a position of the prompts needed.
        budget: the most recurrences of a position.
        inner_recurrence: r', if it is given.
        allows_fronts: whether ticks may refine the fronts alone.
        reads_out: whether such ticks would always read out.
        stats: gets every `Decision`.

    Attributes:
        way: what is chosen.
    """

    def __init__(
        self,
        curve: CostCurve,
        rows: int,
        recurrences: float,
        budget: int,
        inner_recurrence: int | None,
        allows_fronts: bool,
        reads_out: bool,
        stats: SamplerStats,
    ):
        self.curve, self.rows, self.budget, self.inner_recurrence = curve, rows, budget, inner_recurrence
        self.allows_fronts = allows_fronts and inner_recurrence in (None, 1)
        self.reads_out, self.stats = reads_out, stats
        self.recurrences = recurrences
        """How many a position needs in a wave; alone it needs `ALONE` times as many."""
        self.lost = 0.0
        """Ticks per token that wrong drafts cost with r' = 1, by the last ticks that were waves."""
        self.factors = {True: 1.0, False: 1.0}
        """Measured seconds per token over the model's: of fronts alone, and of waves."""
        self.pace, self.is_filling = Pace(), True
        self.way: Way = None
        self.way = self._choose(AS_MEASURED, rows, {"recurrences": self.recurrences})

    def add(self, seconds: float, rows: int, positions: int, recurrences: int, tokens: int, unsettled: int) -> bool:
        """Record a tick; returns whether the next one should run differently.

        Args:
            seconds: what it took.
            rows, positions: in it.
            recurrences: core passes in it; fewer than r' if a front had less of its budget left.
            tokens: committed by it.
            unsettled: positions that had not converged after it.
        """
        # Until a new wave commits its first token, its ticks say nothing of those in the middle of a text.
        if self.is_filling:
            self.is_filling = not tokens
            return False
        width = positions / self.rows
        estimate = self.curve.seconds_per_tick(width, recurrences)
        if self.way is None and not tokens and not self.reads_out:
            estimate -= self.curve.seconds_per_tick(width, 0)
        self.pace.ticks.append(Tick(seconds, estimate, tokens / rows, unsettled / rows))
        is_long = len(self.pace) >= (WINDOW if self.pace.tokens >= TOKENS else LONGEST)
        if not (is_long and tokens):
            return False
        before = self.way
        if self.way is None:
            needed = self.pace.stay / ALONE
        else:
            wavefront, inner = self.way
            needed, ticks = self.pace.stay * inner, 1 / self.pace.tokens_per_tick
            self.lost = max(ticks - steady_wave(self.pace.stay, wavefront)[0], 0.0) * inner**2
        self.recurrences = min(needed, float(self.budget))
        measured = {"tick_seconds": self.pace.tick_seconds, "tokens_per_tick": self.pace.tokens_per_tick}
        self.way = self._choose(self.pace.correction(), rows, {"recurrences": self.recurrences} | measured)
        self.pace, self.is_filling = Pace(), self.way != before
        return self.way != before

    def _choose(self, correction: Correction, rows: int, measured: dict[str, float]) -> Way:
        """The way with the least estimated seconds per token; that of the last ticks unless another gains enough."""

        def modelled(way: Way) -> float:
            if way is None:
                return fronts_seconds(self.curve, ALONE * self.recurrences, rows, correction, share, self.reads_out)
            return wave_seconds(self.curve, self.recurrences, *way, correction, share, self.lost)

        share = rows / self.rows
        ways: list[Way] = [*waves(self.recurrences, self.budget, self.inner_recurrence)]
        ways += [None] if self.allows_fronts else []
        if len(self.pace):
            # The model's error on the last ticks is assumed for all waves, or for single positions.
            now = len(self.pace) / self.pace.tokens * self.pace.tick_seconds
            self.factors[self.way is None] = now / modelled(self.way)
        seconds = {way: self.factors[way is None] * modelled(way) for way in ways}
        best = min(seconds, key=lambda way: seconds[way])
        if len(self.pace):
            seconds[self.way] = now
            best = best if seconds[best] <= GAIN * now else self.way
        self._record(best, seconds, measured)
        return best

    def _record(self, chosen: Way, seconds: dict[Way, float], measured: dict[str, float]) -> None:
        """Add a `Decision` to the stats, unless the last one is kept."""
        if len(self.pace) and chosen == self.way:
            return
        best_wave = min((way for way in seconds if way is not None), key=lambda way: seconds[way])
        compared = {way: seconds[way] for way in (chosen, best_wave, None) if way in seconds}
        settings = {} if chosen is None else {"wavefront": chosen[0], "inner_recurrence": chosen[1]}
        self.stats.decisions.append(
            Decision(
                self.stats.ticks,
                (AdaptiveConfig if chosen is None else DiffusionForcingConfig).sampler,
                settings,
                measured,
                {name_of(way): each for way, each in compared.items()},
            )
        )


def name_of(way: Way) -> str:
    """How decisions call a way."""
    return AdaptiveConfig.sampler if way is None else f"wavefront={way[0]}, inner_recurrence={way[1]}"

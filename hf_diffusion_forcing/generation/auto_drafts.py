"""`draft_depth="auto"`: chooses draft depth and guesses together, and chooses again while decoding."""

from __future__ import annotations

from typing import NamedTuple

from ..settings.autoregressive import AutoregressiveConfig
from ..settings.speculative_wavefront import SpeculativeWavefrontConfig
from .auto_wave import GAIN, LONGEST, TOKENS, WINDOW
from .cost_curve import CostCurve
from .decision import Decision
from .draft_choice import Guessing, choose_guesses, lossless_seconds, lost_ticks
from .output import SamplerStats
from .pace import Correction, Pace, Tick
from .wave_choice import AS_MEASURED

MEMORY = 16
"""The shares known so far count as much as this many drafts or guesses."""

SUREST = 0.999
"""Shares of right drafts stay below this, however many were right: a text may become harder."""


class Drafts(NamedTuple):
    """One way to draft."""

    draft_depth: int
    draft_tokens: int

    def __str__(self) -> str:
        return f"draft_depth={self.draft_depth}, draft_tokens={self.draft_tokens}"


class AutoDrafts:
    """The choice of the draft depth, of all rows, and of the guesses that enter with a draft.

    Args:
        curve: the seconds of passes.
        rows: rows of the call, for which the curve was measured.
        config: the sampler's settings; `draft_depth` is "auto".
        shares: of right drafts in the prompt, by depth: every draft depth, and every second one.
        guessing: how guesses would have fared in the prompt.
        stats: gets every `Decision`; its counts of drafts and guesses are read.

    Attributes:
        draft_depth: of the ticks that run.
        wanted: what was chosen last. Its draft depth becomes that of ticks by `take`.
    """

    def __init__(
        self,
        curve: CostCurve,
        rows: int,
        config: SpeculativeWavefrontConfig,
        shares: dict[int, float],
        guessing: Guessing,
        stats: SamplerStats,
    ):
        self.curve, self.rows, self.config, self.stats = curve, rows, config, stats
        self.shares = {depth: min(share, SUREST) for depth, share in shares.items()}
        self.guessing = guessing
        self._start_window()
        self._choose(AS_MEASURED, rows, {})
        self.take()

    def _start_window(self) -> None:
        self.pace, self.is_filling = Pace(), True
        self._drafts, self._guesses = dict(self.stats.proposals), dict(self.stats.guesses)
        self._asked = self._covered = 0

    @property
    def lost(self) -> float:
        """See `lost_ticks`; at the depth of the ticks that run."""
        return self._lost(self.draft_depth)

    def _lost(self, depth: int) -> float:
        return lost_ticks(self.shares, self.config.num_steps, depth, self.config.second_depth(depth))

    def guesses(self, chances: list[float]) -> int:
        """How many guesses should enter behind a row's newest draft.

        Args:
            chances: of each that could, by how often the row's latest guesses were right.
        """
        self._asked += 1
        self._covered += bool(chances)
        if self.config.draft_tokens != "auto":
            return len(chances)
        return choose_guesses(self.curve, chances, self.config.num_steps, self.draft_depth, self.lost)

    def add(self, seconds: float, rows: int, positions: int, read: int, tokens: int) -> None:
        """Record a tick, and choose again if there were enough.

        Args:
            seconds: what it took.
            rows, positions: in it.
            read: positions that were read out.
            tokens: committed by it.
        """
        # Until a new wave commits its first token, its ticks say nothing of those in the middle of a text.
        if self.is_filling:
            self.is_filling = not tokens
            return
        estimate = self.curve.seconds_per_tick(positions / self.rows, self.draft_depth, ends=read / self.rows)
        self.pace.ticks.append(Tick(seconds, estimate, tokens / rows, 0.0))
        if not tokens or len(self.pace) < (WINDOW if self.pace.tokens >= TOKENS else LONGEST):
            return
        self._learn()
        measured = {"tick_seconds": self.pace.tick_seconds, "tokens_per_tick": self.pace.tokens_per_tick}
        self._choose(self.pace.correction(), rows, measured)
        self._start_window()

    def take(self) -> None:
        """Run ticks by the draft depth that is wanted, from the next one on, and record why."""
        self.draft_depth = self.wanted.draft_depth
        self.stats.decisions.append(self._why)
        self._start_window()

    def _learn(self) -> None:
        """Update the shares of right drafts and guesses by those that were checked since the last choice."""
        depth, before = self.draft_depth, dict(self.shares)
        for each in {depth, self.config.second_depth(depth)} & self.shares.keys():
            made, right = self._since(self._drafts, self.stats.proposals, each)
            self.shares[each] = min((right + MEMORY * before[each]) / (made + MEMORY), SUREST)
        # Other depths are assumed to err more often, or less, by the same factor.
        factor = (1 - self.shares[depth]) / (1 - before[depth])
        for each in self.shares.keys() - {depth, self.config.second_depth(depth)}:
            self.shares[each] = min(1 - min(1.0, (1 - before[each]) * factor), SUREST)
        if self._asked:
            known, sources = self.guessing, self.stats.guesses
            counts = [self._since(self._guesses, sources, source) for source in sources]
            made, right = map(sum, zip((0, 0), *counts, strict=True))
            self.guessing = Guessing(
                (self._covered + MEMORY * known.coverage) / (self._asked + MEMORY),
                (right + MEMORY * known.accuracy) / (made + MEMORY),
            )

    @staticmethod
    def _since(before: dict, now: dict, key: int | str) -> tuple[int, int]:
        """How many were made and right since the last choice."""
        (made, right), (made_before, right_before) = now.get(key, (0, 0)), before.get(key, (0, 0))
        return made - made_before, right - right_before

    def _choose(self, correction: Correction, rows: int, measured: dict[str, float]) -> None:
        """Choose the way with the least estimated seconds per token; another draft depth only if it gains enough."""
        config, share = self.config, rows / self.rows
        tokens = range(1, config.most_draft_tokens + 1) if config.draft_tokens == "auto" else [config.draft_tokens]
        seconds = {
            Drafts(depth, most): lossless_seconds(
                self.curve,
                [self.guessing.accuracy] * (most - 1),
                config.num_steps,
                depth,
                self._lost(depth),
                self.guessing.coverage,
                correction,
                share,
            )
            for depth in config.draft_depths
            for most in tokens
        }
        best = min(seconds, key=lambda way: seconds[way])
        if len(self.pace):
            kept = min((way for way in seconds if way.draft_depth == self.draft_depth), key=lambda way: seconds[way])
            best = best if seconds[best] <= GAIN * seconds[kept] else kept
        self.wanted = best
        known = {
            "acceptance": self.shares[best.draft_depth],
            "guess_coverage": self.guessing.coverage,
            "guess_accuracy": self.guessing.accuracy,
        }
        usual = Drafts(config.usual_draft_depth, min(tokens))
        alone = min((way for way in seconds if way.draft_tokens == min(tokens)), key=lambda way: seconds[way])
        compared = {str(way): seconds[way] for way in (best, alone, usual)}
        one = correction(self.curve.seconds_per_tick(share, config.num_steps))
        self._why = Decision(
            self.stats.ticks,
            config.sampler,
            {"draft_depth": best.draft_depth, "draft_tokens": best.draft_tokens},
            known | measured,
            compared | {AutoregressiveConfig.sampler: one},
        )

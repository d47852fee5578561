"""Counts of continuous batching."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..generation.output import SamplerStats
from .request import Request


@dataclass(frozen=True)
class BatchingLoad:
    """What a manager carries at a moment.

    Attributes:
        waiting: requests in the queue.
        rows: requests that are being read or decoded.
        cache_bytes: allocated for keys and values.
    """

    waiting: int = 0
    rows: int = 0
    cache_bytes: int = 0


@dataclass
class BatchingStats:
    """Counts of a manager since it was made.

    Attributes:
        requests: that have ended, the failed ones too.
        failed: that have failed; a cancelled request counts as failed.
        tokens: new tokens of requests that have ended.
        ticks: ticks, each over the rows of one group.
        core_passes: core calls in those ticks.
        positions_refined: sum of positions over core calls.
        prefill_core_passes: core calls over prompts.
        prompt_positions: positions of the prompts that have begun.
        reused_positions: those of them that were not read, since a row before them had the same ones.
    """

    requests: int = 0
    failed: int = 0
    tokens: int = 0
    ticks: int = 0
    core_passes: int = 0
    positions_refined: int = 0
    prefill_core_passes: int = 0
    prompt_positions: int = 0
    reused_positions: int = 0

    def count(self, request: Request) -> None:
        """Count a request that has ended."""
        self.requests += 1
        self.failed += request.error is not None
        self.tokens += len(request.tokens)

    def add(self, after: SamplerStats, before: SamplerStats) -> None:
        """Add what a group has done in a turn."""
        for name in ("ticks", "core_passes", "positions_refined", "prefill_core_passes"):
            setattr(self, name, getattr(self, name) + getattr(after, name) - getattr(before, name))

    @property
    def tokens_per_tick(self) -> float:
        """0.0 without ticks."""
        return self.tokens / self.ticks if self.ticks else 0.0

    @property
    def prefix_hit_rate(self) -> float:
        """The share of positions of prompts that were not read; 0.0 without prompts."""
        return self.reused_positions / self.prompt_positions if self.prompt_positions else 0.0

    def to_dict(self) -> dict[str, float]:
        """Counts and ratios as plain JSON values."""
        ratios = ("tokens_per_tick", "prefix_hit_rate")
        return asdict(self) | {name: getattr(self, name) for name in ratios}

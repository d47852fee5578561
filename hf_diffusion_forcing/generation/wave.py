"""What the loop around the samplers' ticks needs to know of a wave, whatever its form."""

from typing import Protocol


class Wave(Protocol):
    """Positions being refined, in rows.

    Attributes:
        tokens: per row, the ids at its positions: the first is committed, the others are drafts; empty when the row
            has ended.
    """

    tokens: list[list[int]]

    def keep_rows(self, rows: list[int]) -> None:
        """Drop all rows but these."""

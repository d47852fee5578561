"""Which keys and values of one row can be the beginning of another's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..generation.row import Row


@dataclass(frozen=True)
class PrefixRule:
    """What a new row may take over from a row of the same settings, so that its text stays the same.

    An entry depends on the ids up to its position, on the seed where states start from noise, and, where keys and
    values are shared between recurrences, on where the chunks of the prompt begin. A new row may take what reading its
    own prompt would write: the other's prompt, and its new tokens only if they were read at full depth, as a prompt is.

    Attributes:
        needs_seed: whether states start from noise, so that both rows must have the same seed.
        chunk: what is taken ends at a multiple of it; 1 where chunks do not matter, 0 if nothing may be taken.
        includes_text: whether new tokens may be taken too.
    """

    needs_seed: bool
    chunk: int
    includes_text: bool

    def length(self, row: Row, other: Row) -> int:
        """Positions that a row whose prompt has not been read may take from another one."""
        if not self.chunk or (self.needs_seed and row.seed != other.seed):
            return 0
        if any(each.shift or each.block or each.embeds is not None for each in (row, other)):
            return 0
        # The last committed id has no entries yet; and the last id of a prompt is read to predict the next.
        known = other.ids[: other.front if self.includes_text else other.prompt_length]
        length = min(common_prefix(row.ids, known), len(row.ids) - 1)
        return length - length % self.chunk

    def best(self, row: Row, others: Iterable[Row]) -> tuple[Row | None, int]:
        """The row from which the most can be taken, and how much; the first of equal ones."""
        best, most = None, 0
        for other in others:
            length = self.length(row, other)
            if length > most:
                best, most = other, length
        return best, most


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two texts begin with alike."""
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count

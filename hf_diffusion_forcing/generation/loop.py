"""The decoding loop: rows join, ticks refine them, rows leave."""

from ..cache import RecurrentDepthCache
from .row import Row
from .sampler import TickingSampler


class Loop:
    """Decodes rows, which join and leave between ticks.

    Row i of `rows` has seat i of the cache, so a pass over all rows needs only one view of it.

    Args:
        sampler: runs the ticks.
        cache: holds the seats.

    Attributes:
        rows: the rows being decoded, in the order of their seats.
        seated: all rows with a seat, in the order of the seats: those being decoded, then those that have ended.
    """

    def __init__(self, sampler: TickingSampler, cache: RecurrentDepthCache):
        self.sampler, self.cache = sampler, cache
        self.rows: list[Row] = []
        self.seated: list[Row] = []

    def join(self, rows: list[Row]) -> None:
        """Read the prompts of new rows, commit the token each predicts, and start their waves."""
        # Rows that have ended have the seats after the live ones; new rows sit after both.
        first_seat = len(self.seated)
        self.seated += rows
        tokens, logits, scores = self.sampler.read(rows, first_seat)
        for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            token = row.commit(token, logits[index], scores[index])
            if self.sampler.recorder is not None:
                self.sampler.recorder.trace.first_tokens.append(token)
        for seat, row in enumerate(rows, start=first_seat):
            self._swap(seat, len(self.rows))
            self.rows.append(row)
            if not row.has_ended:
                self.sampler.begin(row)
        self.let_rows_leave()

    def tick(self) -> None:
        """Run one tick over all rows; rows that have ended leave."""
        self.sampler.tick(self.rows)
        self.let_rows_leave()

    def end(self, row: Row) -> None:
        """End a row that its last token did not end."""
        row.has_ended = True
        if row in self.rows:
            self.sampler.end(row)
            self.let_rows_leave()

    def let_rows_leave(self) -> None:
        """Give the seats of rows that have ended to the last live rows."""
        for seat in reversed(range(len(self.rows))):
            if self.rows[seat].has_ended:
                last = len(self.rows) - 1
                self._swap(seat, last)
                self.rows[seat] = self.rows[last]
                self.rows.pop()

    def _swap(self, first: int, second: int) -> None:
        if first != second:
            self.cache.swap_seats(first, second)
            self.seated[first], self.seated[second] = self.seated[second], self.seated[first]

    def restore_seats(self, rows: list[Row]) -> None:
        """Reorder the seats to match `rows`, the order in which the caller knows them."""
        for seat, row in enumerate(rows):
            self._swap(seat, self.seated.index(row))

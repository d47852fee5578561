"""The decoding loop: rows join, ticks refine them, rows leave."""

from collections.abc import Generator, Sequence

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
        seated: all rows with a seat, in the order of the seats: those being decoded, then, in any order, those whose
            prompts are being read and those that have ended.
    """

    def __init__(self, sampler: TickingSampler, cache: RecurrentDepthCache):
        self.sampler, self.cache = sampler, cache
        self.rows: list[Row] = []
        self.seated: list[Row] = []

    def join(self, rows: list[Row]) -> None:
        """Read the prompts of new rows, commit the token each predicts, and start their waves."""
        for _ in self.joining(rows):
            pass

    def joining(
        self, rows: list[Row], predecessors: Sequence[Row | None] = (), donors: Sequence[Row | None] = ()
    ) -> Generator[None, None, None]:
        """`join` in steps, between which the other rows may tick. Only one such generator may be at work.

        A row that is ended meanwhile does not join, and leaves its seat.

        Args:
            predecessors: for each new row, the row that has ended and whose seat it takes; None is a new seat, and so
                are missing ones.
            donors: for each new row, the row whose keys and values of the first `cached` positions it begins with.
        """
        first_seat = self._seat(rows, predecessors, donors or [None] * len(rows))
        tokens, logits, scores = yield from self.sampler.read(rows, first_seat)
        for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if row.has_ended:
                continue
            token = row.commit(token, logits[index], scores[index])
            if self.sampler.recorder is not None:
                self.sampler.recorder.trace.first_tokens.append(token)
        for seat, row in enumerate(rows, start=first_seat):
            self._swap(seat, len(self.rows))
            self.rows.append(row)
            if not row.has_ended:
                self.sampler.begin(row)
        self.let_rows_leave()

    def _seat(self, rows: list[Row], predecessors: Sequence[Row | None], donors: Sequence[Row | None]) -> int:
        """Seat new rows side by side, with what their donors have of their prompts; the first of the seats."""
        first_seat = len(self.rows) if any(predecessors) else len(self.seated)
        taken: dict[Row, int] = {}
        for seat, (row, predecessor) in enumerate(
            zip(rows, predecessors or [None] * len(rows), strict=True), start=first_seat
        ):
            if predecessor is None:
                self.seated.append(row)
                if any(predecessors) or any(donors):
                    self.cache.reserve(0, len(self.seated))
            source = self.seated.index(predecessor or row)
            self._swap(source, seat)
            self.seated[seat] = row
            if predecessor is not None:
                taken[predecessor] = seat
                # What a row leaves behind is masked, but 0 * NaN is NaN.
                self.cache.scrub(seat)
        for seat, (row, donor) in enumerate(zip(rows, donors, strict=True), start=first_seat):
            if donor is not None and taken.get(donor) != seat:
                source = taken[donor] if donor in taken else self.seated.index(donor)
                self.cache.copy_seat(source, seat, row.cached)
        return first_seat

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

    def clear_seats(self, rows: Sequence[Row]) -> None:
        """Free the memory of the seats of rows that have ended; not while prompts are being read."""
        for row in rows:
            last = len(self.seated) - 1
            self._swap(self.seated.index(row), last)
            self.seated.pop()
        self.cache.keep_seats(len(self.seated))

    def _swap(self, first: int, second: int) -> None:
        if first != second:
            self.cache.swap_seats(first, second)
            self.seated[first], self.seated[second] = self.seated[second], self.seated[first]

    def restore_seats(self, rows: list[Row]) -> None:
        """Reorder the seats to match `rows`, the order in which the caller knows them."""
        for seat, row in enumerate(rows):
            self._swap(seat, self.seated.index(row))

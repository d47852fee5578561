"""The memory of a cache, seat by seat: it grows, and seats are exchanged, copied, cleaned, kept and repeated."""

from collections.abc import Sequence

import torch

from .memory import copied, resized

STEP = 64
"""Growing rounds the capacity up to a multiple of this."""


class Seats:
    """The operations of a `RecurrentDepthCache` on whole seats.

    Attributes:
        keys, values: of each layer, [slots, seats, heads, capacity + 1, head_dim]; None before it was written.
        seats: the rows it has memory for.
        capacity: positions of a seat.
        limit: positions that no row will pass, if that is known.
        filled: for each seat, all positions written so far are below this.
    """

    keys: list[torch.Tensor | None]
    values: list[torch.Tensor | None]
    seats: int
    capacity: int
    limit: int | None
    filled: list[int]

    def capacity_for(self, extent: int, limit: int | None = None) -> int:
        """The capacity once there is room for positions below `extent`.

        Args:
            limit: positions that no row will pass, if that is known.
        """
        if extent <= self.capacity:
            return self.capacity
        # Growing by half keeps copies rare and memory proportional to the text.
        grown = self.capacity + self.capacity // 2
        if limit is not None and extent <= limit + -limit % STEP:
            grown = min(grown, limit)
        capacity = max(extent, grown)
        return capacity + -capacity % STEP

    def reserve(self, extent: int, seats: int) -> None:
        """Make room for positions below `extent` in `seats` seats.

        If memory runs out, the layers before may have more room than the others: nothing is lost.
        """
        capacity, seats = self.capacity_for(extent, self.limit), max(seats, self.seats)
        if capacity > self.capacity or seats > self.seats:
            for tensors in (self.keys, self.values):
                for layer, old in enumerate(tensors):
                    if old is not None:
                        room = max(seats, old.shape[1]), max(capacity + 1, old.shape[3])
                        tensors[layer] = resized(old, old.shape[0], *room, self.filled)
            self.capacity, self.seats = capacity, seats
            self.filled += [0] * (seats - len(self.filled))

    def _leave_inference_mode(self) -> None:
        """Outside `torch.inference_mode()`, copy tensors made inside it, which cannot be written to."""
        stored = [t for t in (*self.keys, *self.values) if t is not None]
        # An empty cache first: torch.compile cannot trace is_inference_mode_enabled().
        if not stored or torch.is_inference_mode_enabled() or not any(t.is_inference() for t in stored):
            return
        for tensors in (self.keys, self.values):
            tensors[:] = [t if t is None else self._copy_of(t, range(t.shape[1])) for t in tensors]

    def __getstate__(self):
        """A copy or a pickle holds what there is, without the addresses behind it."""
        stored = {name: [None if t is None else t.clone() for t in getattr(self, name)] for name in ("keys", "values")}
        return self.__dict__ | stored

    def swap_seats(self, first: int, second: int) -> None:
        """Exchange what two seats hold; copies what has been written in them."""
        length = max(self.filled[first], self.filled[second])
        for stored in (*self.keys, *self.values):
            if stored is not None:
                written = stored[:, :, :, :length]
                kept = written[:, first].clone()
                written[:, first] = written[:, second]
                written[:, second] = kept
        self.filled[first], self.filled[second] = self.filled[second], self.filled[first]

    def copy_seat(self, source: int, seat: int, length: int) -> None:
        """Copy the first `length` positions of a seat to another one."""
        for stored in (*self.keys, *self.values):
            if stored is not None:
                stored[:, seat, :, :length] = stored[:, source, :, :length]
        self.filled[seat] = max(self.filled[seat], length)

    def scrub(self, seat: int) -> None:
        """Zero what is not finite among the keys and values in a seat: it would spread through a mask, as 0 * NaN."""
        for stored in (*self.keys, *self.values):
            if stored is not None:
                stored[:, seat, :, : self.filled[seat]].nan_to_num_(0.0, 0.0, 0.0)

    def keep_seats(self, count: int) -> None:
        """Free the memory of all seats but the first `count`."""
        self._take_seats(range(count))
        if not count:
            self.capacity = 0

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices` (int64 [rows])."""
        self._take_seats(indices.tolist())

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Keep the rows that beam search picked."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._take_seats([seat for seat in range(self.seats) for _ in range(repeats)])

    def _take_seats(self, origins: Sequence[int]) -> None:
        """Have a seat for each of `origins`, with what that seat holds."""
        for tensors in (self.keys, self.values):
            tensors[:] = [None if t is None or not origins else self._copy_of(t, origins) for t in tensors]
        written = dict(enumerate(self.filled))  # empty if nothing was ever written
        self.filled = [written.get(seat, 0) for seat in origins]
        self.seats = len(origins)

    def _copy_of(self, stored: torch.Tensor, origins: Sequence[int]) -> torch.Tensor:
        """A new tensor of keys or values with a copy of each seat in `origins`."""
        return copied(stored, stored.shape[0], len(origins), stored.shape[3], origins, self.filled)

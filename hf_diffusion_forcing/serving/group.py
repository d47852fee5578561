"""Rows that tick together: they share one sampler and one cache."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator

import torch

from ..compat.continuous_batching import RequestStatus
from ..generation.loop import Loop
from ..generation.output import SamplerStats
from ..generation.row import Row
from ..models.interface import RecurrentDepthInterface
from .budget import bytes_per_position
from .prefixes import PrefixRule
from .request import Request

READ_TOGETHER = 512
"""Positions up to which several prompts are read in one pass."""

KNOWN = 32
"""Ticks of rows after which their mean width counts, not the widest that is possible."""


def unread(request: Request) -> int:
    """Positions of a request's prompt that are not in the cache."""
    return request.row.front + 1 - request.row.cached


class Group:
    """Rows of the same settings in one loop. Prompts are read in steps, between the ticks of the rows that are there.

    Args:
        model: implements `RecurrentDepthInterface`.
        request: the first one; its settings are the group's.
        entries: bytes of an entry in each layer of the cache.
        seats: the most seats, counting those that are kept for their prefixes; 0 keeps none.

    Attributes:
        requests: the requests being decoded, by row.
        reading: those whose prompts are being read.
        arrivals: those after them, in the pieces in which their prompts are read together.
        work: core passes so far, which say whose turn it is.
        kept: rows that have ended and whose keys and values may begin another's, each with the time of its last use.
        reused: positions of prompts that were taken over or copied.
    """

    def __init__(self, model: RecurrentDepthInterface, request: Request, entries: list[int], seats: int = 0):
        self.settings = request.settings
        sampler_class, config, chunk, self.device = self.settings
        self.cache = model.new_cache(config.deepest, config.kv_sharing)
        self.loop = Loop(sampler_class(model, self.cache, config, self.device, chunk), self.cache)
        self.requests: dict[Row, Request] = {}
        self.reading: list[Request] = []
        self.arrivals: deque[list[Request]] = deque()
        self.work = 0.0
        self.kept: dict[Row, float] = {}
        self.reused = 0
        chunk_rule = (chunk or 0) if config.sees_chunks else 1
        is_kept = seats and not config.follows_prompt
        self.rule = PrefixRule(
            model.starts_from_noise and config.state_scale != 0,
            chunk_rule if is_kept else 0,
            # In exact arithmetic new tokens attend one by one, and a prompt's together.
            sampler_class.is_lossless and not config.sees_chunks and not config.is_exact,
        )
        self.seats = seats if self.rule.chunk else 0
        self.bytes_per_position = bytes_per_position(entries, self.cache, sampler_class.readouts)
        self._steps: Generator[None, None, None] | None = None
        self._passes_per_tick = 1
        self._row_passes = 0

    @property
    def stats(self) -> SamplerStats:
        return self.loop.sampler.stats

    @property
    def members(self) -> list[Request]:
        """All requests of the group."""
        return [*self.requests.values(), *self.reading, *(each for piece in self.arrivals for each in piece)]

    @property
    def is_reading(self) -> bool:
        """Whether prompts are being read, so that seats must stay where they are."""
        return self._steps is not None

    def takes(self, request: Request) -> bool:
        """Whether a request's row can tick with those of the group."""
        return self.settings.can_share(request.settings)

    def cache_bytes(self, request: Request | None = None) -> int:
        """Bytes of keys and values once all rows are at their longest, with another request if there is one."""
        members = [*self.members, *([request] if request else [])]
        joining = len(members) - len(self.requests) - len(self.reading)
        seats = max(min(len(self.loop.seated) + joining, self.seats), len(self.loop.seated), len(members))
        longest = max((each.positions for each in members), default=0)
        return self.bytes_per_position * seats * (self.loop.sampler.cache.capacity_for(longest, longest) + 1)

    @property
    def width(self) -> float:
        """Positions of a row in a pass: the mean so far, or what its settings allow while there were few ticks."""
        if self._row_passes < KNOWN * self._passes_per_tick:
            return self.settings.config.widest
        return self.stats.positions_refined / self._row_passes

    def add(self, request: Request) -> None:
        """Take a request; its prompt is read together with those that also wait for their turn."""
        request.begin()
        if not self.arrivals or sum(map(unread, [*self.arrivals[-1], request])) > READ_TOGETHER:
            self.arrivals.append([])
        self.arrivals[-1].append(request)

    def cancel(self, request: Request) -> None:
        """End a request from outside. If its prompt is being read, the row is dropped when that is done."""
        for piece in self.arrivals:
            if request in piece:
                piece.remove(request)
        self.arrivals = deque(filter(None, self.arrivals))
        self.loop.end(request.row)
        if self.requests.pop(request.row, None) is not None:
            self._keep(request)
        if request in self.reading:
            self.reading.remove(request)
            if not self.reading:
                self._steps = None

    # --- one turn ---

    def turn(self, positions: int) -> list[Request]:
        """Read prompts for a while, then tick; the requests that have ended.

        Args:
            positions: the most positions of a pass.
        """
        passes = self.stats.core_passes + self.stats.prefill_core_passes
        self.cache.limit = max(each.positions for each in self.members)
        over = self._read(positions)
        if self.loop.rows:
            over += self._tick()
        self.work += max(self.stats.core_passes + self.stats.prefill_core_passes - passes, 1)
        if not self.is_reading:
            self._free_seats()
        return over

    def _read(self, positions: int) -> list[Request]:
        """Read prompts for one recurrence, or for as many as cost no more than a tick of the widest pass."""
        spent, allowed = 0, positions * self._passes_per_tick
        while self._steps is not None or self.arrivals:
            if self._steps is None:
                self._begin()
            spent += sum(map(unread, self.reading))
            try:
                next(self._steps)
            except StopIteration:
                self._steps = None
                read, self.reading = self.reading, []
                self.requests |= {each.row: each for each in read}
                return self._leaving(read)
            except Exception as error:
                return self._give_up(error)
            if spent >= allowed:
                break
        return []

    def _begin(self) -> None:
        """Start reading the prompts that are next, each from where the longest prefix that is known ends."""
        waiting, later = self.arrivals.popleft(), []
        free = [row for row in self.loop.seated if row.has_ended and row not in self.kept]
        predecessors, donors = [], []
        for request in waiting:
            row = request.row
            # A seat that another row takes for want of a better one is as good as empty.
            lost = {each for each, own in zip(predecessors, donors, strict=True) if each is not own}
            donor, length = self.rule.best(row, [each for each in (*self.requests, *self.kept) if each not in lost])
            if self.rule.best(row, [each.row for each in self.reading])[1] > length:
                later.append(request)  # it copies what is read now
                continue
            self.reading.append(request)
            row.cached, self.reused = length, self.reused + length
            donors.append(donor)
            predecessors.append(self._seat_for(donor, free, predecessors))
        if later:
            self.arrivals.appendleft(later)
        for donor in donors:
            if donor in self.kept:
                self.kept[donor] = time.monotonic()
        for predecessor in predecessors:
            self.kept.pop(predecessor, None)
        self._steps = self.loop.joining([each.row for each in self.reading], predecessors, donors)

    def _seat_for(self, donor: Row | None, free: list[Row], taken: list[Row | None]) -> Row | None:
        """The row whose seat a new one takes: the donor's if it has ended, one that nobody needs, a new one while
        there may be more, or that of the row that was of use longest ago."""
        if donor in self.kept and donor not in taken:
            return donor
        if free:
            return free.pop()
        kept = [row for row in self.kept if row not in taken]
        if not kept or len(self.loop.seated) + taken.count(None) < self.seats:
            return None
        return min(kept, key=self.kept.get)

    def _keep(self, request: Request) -> None:
        """Keep what a row that has ended leaves in its seat."""
        if self.seats and request.error is None:
            self.kept[request.row] = time.monotonic()

    def forget(self, row: Row) -> None:
        """Free the seat of a kept row; not while prompts are being read."""
        del self.kept[row]
        self.loop.clear_seats([row])

    def _give_up(self, error: Exception) -> list[Request]:
        """After an error while prompts were read: a request alone fails; several are read again one by one."""
        self._steps = None
        failed, self.reading = self.reading, []
        for request in failed:
            request.row.cached = 0
        self.loop.clear_seats([each.row for each in failed if each.row in self.loop.seated])
        if len(failed) > 1:
            self.arrivals.extendleft([each] for each in reversed(failed))
            return []
        for request in failed:
            request.fail(error)
        return self._leaving(failed)

    def _tick(self) -> list[Request]:
        passes, here = self.stats.core_passes, list(self.requests.values())
        try:
            self.loop.tick()
        except Exception as error:
            # A hook of the settings, or the model: whose row it was nobody knows.
            for request in here:
                request.fail(error)
        self._passes_per_tick = max(1, self.stats.core_passes - passes)
        self._row_passes += len(here) * self._passes_per_tick
        for request in here:
            self._show_drafts(request)
        return self._leaving(here)

    def _show_drafts(self, request: Request) -> None:
        row = request.row
        if row.call.streamer is not None and not row.has_ended and len(row.wave) > 1:
            row.call.streamer.put_draft(torch.tensor([position.token for position in row.wave[1:]]))

    def _leaving(self, requests: list[Request]) -> list[Request]:
        """Take out those of the requests that have ended or failed; the others decode on."""
        over = [each for each in requests if each.row.has_ended or each.error is not None]
        for request in requests:
            request.status = RequestStatus.DECODING
        for request in over:
            if not request.row.has_ended:
                self.loop.end(request.row)
            if self.requests.pop(request.row, None) is not None:
                self._keep(request)
        return over

    def _free_seats(self) -> None:
        """Free the memory of seats that nobody has, once they are more than those in use."""
        free = [row for row in self.loop.seated if row.has_ended and row not in self.kept]
        if len(free) > len(self.loop.rows):
            self.loop.clear_seats(free)

"""Passes of few shapes, for compiled code: what a pass over rows end to end looks like in one of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .grid import Grid
from .placement import Placement, Slots
from .recurrent_depth_cache import RecurrentDepthCache
from .runs import Run, find_runs
from .seats import STEP


def bucket(count: int, least: int = 1) -> int:
    """The smallest of `least`, 2 x `least`, 4 x `least`, ... that is not below `count`."""
    return least << (-(-count // least) - 1).bit_length()


@dataclass(frozen=True)
class StaticShape:
    """The shape of a pass. Each row has `cohorts` x `width` places, a cohort being the places at one slot.

    Attributes:
        rows: rows of the grid.
        cohorts: cohorts of a row, at slots with equal distances; None if the whole pass is at one slot.
        width: places of a cohort.
        extent: keys that attention reads.
    """

    rows: int
    cohorts: int | None
    width: int
    extent: int

    @property
    def places(self) -> int:
        """Places of a row."""
        return (self.cohorts or 1) * self.width

    @classmethod
    def of(cls, at: Placement, cache: RecurrentDepthCache) -> StaticShape:
        """The smallest shape that holds the positions of a placement, which have one slot or `Slots`."""
        # Not more rows than there are seats: others would need memory.
        rows = min(bucket(len(at.seats)), cache.seats - at.seats.start)
        extent = bucket(at.extent, STEP)
        if not isinstance(at.depth, Slots):
            return cls(rows, None, bucket(max(at.widths)), extent)
        host, apart, width, begin = at.depth.host, at.depth.apart, 1, 0
        for count in at.widths:
            own = host[begin : begin + count]
            width, begin = max(width, *map(own.count, own)), begin + count
        cohorts = min(bucket(max(host) // apart + 1), cache.core_slots // apart)
        return cls(rows, cohorts, bucket(width), extent)


class StaticPlaces:
    """The positions of a pass in a static shape. Passes that differ in extent alone share these tensors.

    Args:
        shape: of the pass.
        device: device of the tensors.

    Attributes:
        positions, rows, ids: as in `Placement`, int64 [1, rows * places]; position -1 marks an empty place.
        depth: 0, or the cohort of each place.
        runs: how attention reads the cohorts.
    """

    def __init__(self, shape: StaticShape, device: torch.device):
        self.shape = shape
        count = shape.rows * shape.places
        self.positions, self.ids = (torch.zeros(1, count, dtype=torch.int64, device=device) for _ in range(2))
        index = torch.arange(count, device=device)
        self.rows = index[None] // shape.places
        self.depth: int | Slots = 0
        self.runs: dict[tuple[int, ...], list[Run]] = {}
        if shape.cohorts is not None:
            host = tuple(place % shape.places // shape.width for place in range(count))
            self.depth = Slots(host, index % shape.places // shape.width)
            self.runs[host] = find_runs(host, self.widths, device)

    @property
    def widths(self) -> list[int]:
        """Places of each row."""
        return [self.shape.places] * self.shape.rows

    def take(self, at: Placement) -> torch.Tensor:
        """Take the positions of a pass over rows end to end; returns each one's place, int64 [n].

        In each row, positions at one slot are neighbours, and slots rise. Nothing is copied from the host.
        """
        cohort = at.rows[0]
        if isinstance(at.depth, Slots):
            cohort = cohort * self.shape.cohorts + at.depth.device // at.depth.apart
        index = torch.arange(len(cohort), device=cohort.device)
        places = cohort * self.shape.width + index - torch.searchsorted(cohort, cohort)
        self.positions.fill_(-1)
        self.positions[0].index_copy_(0, places, at.positions[0])
        if at.ids is not None:
            self.ids[0].index_copy_(0, places, at.ids[0])
        return places

    def place(self, entries: SlotEntries, extent: int) -> Placement:
        """The placement of a pass whose recurrence reads and writes `entries`."""
        grid, mask = Grid(self.widths, self.positions.device), None
        if self.shape.cohorts is None:
            keys = torch.arange(extent, device=self.positions.device)
            mask = keys <= grid.pad(self.positions).clamp_min(0)[:, None, :, None]
        seats = range(self.shape.rows)
        given = {"mask": mask, "grid": grid, "ids": self.ids, "_runs": self.runs}
        return Placement(entries, self.positions, extent, seats, self.rows, self.depth, **given)


class SlotEntries(RecurrentDepthCache):
    """What one recurrence of a pass reads and writes, as a cache of its own.

    Args:
        keys, values: views of another cache's core layers, [rows, heads, capacity + 1, head_dim], or
            [cohorts, rows, ...]; None in the other layers.
    """

    def __init__(self, keys: list[torch.Tensor | None], values: list[torch.Tensor | None]):
        # Not that of RecurrentDepthCache: there is nothing to allocate.
        self.keys, self.values = keys, values

    @classmethod
    def of(cls, cache: RecurrentDepthCache, at: Placement, shape: StaticShape, depth: int) -> SlotEntries:
        """The entries of recurrence `depth` of a pass."""
        if isinstance(at.depth, Slots):
            apart = at.depth.apart
            slots = slice(depth, depth + apart * (shape.cohorts - 1) + 1, apart)
        else:
            slots = at.slot(depth)
        seats = slice(at.seats.start, at.seats.start + shape.rows)
        core = range(cache.num_prelude_layers, cache.num_prelude_layers + cache.num_core_layers)
        keys, values = (
            [stored[slots, seats] if layer in core else None for layer, stored in enumerate(tensors)]
            for tensors in (cache.keys, cache.values)
        )
        return cls(keys, values)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All keys and values."""
        return [stored for stored in (*self.keys, *self.values) if stored is not None]

    def slot(self, depth):
        """Slots are counted from the first of the entries."""
        return depth

    def attend(self, layer, query, key, value, at, slot=0) -> torch.Tensor:
        """`RecurrentDepthCache.attend`."""
        if isinstance(slot, Slots):
            return super().attend(layer, query, key, value, at, slot)
        # Not by way of `keys[slot]`: torch's compiler would write to a copy of all entries.
        keys, values = self.keys[layer], self.values[layer]
        y = self._attend_at_slot(keys, values, query.to(keys.dtype), key.to(keys.dtype), value.to(values.dtype), at)
        return y.to(query.dtype)


class RoundedCapacity:
    """A cache that grows to at least a `bucket` of `STEP`. One that starts empty has no other capacities, so that its
    tensors have few shapes. All else is the cache's own."""

    def __init__(self, cache: RecurrentDepthCache):
        self.cache = cache

    def __getattr__(self, name: str):
        return getattr(self.cache, name)

    def capacity_for(self, extent: int, limit: int | None = None) -> int:
        """`RecurrentDepthCache.capacity_for`, whatever the limit."""
        return bucket(extent, STEP) if extent > self.cache.capacity else self.cache.capacity

    def place_rows(self, positions, rows, widths, extents, *args, **kwargs) -> Placement:
        """`RecurrentDepthCache.place_rows`."""
        self.cache.reserve(self.capacity_for(max(extents)), 0)
        return self.cache.place_rows(positions, rows, widths, extents, *args, **kwargs)

    def place_prompt(self, positions, rows, widths, starts, first_seat=0) -> Placement:
        """`RecurrentDepthCache.place_prompt`."""
        extent = max(start + width for start, width in zip(starts, widths, strict=True))
        self.cache.reserve(self.capacity_for(extent), 0)
        return self.cache.place_prompt(positions, rows, widths, starts, first_seat)

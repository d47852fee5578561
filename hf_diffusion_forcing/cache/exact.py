"""Attention in which a position's numbers do not depend on the positions beside it.

A kernel adds up a query's products in an order that depends on how many rows, queries and keys it is called with, and
on which thread gets them. So a position is always computed by a call of the same shape: alone, if it was decoded, or in
the same tile, if it is of a prompt. Only a decoded position's keys vary in number. Measured (docs/benchmarks/exact.md),
it has the same sums however many masked keys follow those it sees, if all keys are a multiple of 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .attention import attention
from .placement import Placement
from .recurrent_depth_cache import RecurrentDepthCache

ALONE = 16
"""The keys of a query alone are a multiple of it."""

TILE = 64
"""A prompt's positions from one multiple of it to the next attend in one call, to the keys up to the second."""

Kernel = Callable[..., torch.Tensor]


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """torch's own kernel, for any number of queries; arguments as in `attention`."""
    return F.scaled_dot_product_attention(query, key, value, mask, enable_gqa=query.shape[1] != key.shape[1])


def of_all_widths(kernel: Kernel) -> Kernel:
    """The kernel itself; torch's own for `attention`, which chooses between two by the number of queries."""
    return fused if kernel is attention else kernel


def exact_kernel(kernel: Kernel, at: Placement) -> Kernel:
    """The kernel of a pass in exact arithmetic.

    Args:
        kernel: the model's own.
        at: the pass; has `starts` if it reads prompts.
    """
    kernel = of_all_widths(kernel)
    return QueryByQuery(kernel) if at.starts is None else Tiles(kernel, at.starts, at.widths)


class QueryByQuery:
    """Calls a kernel with one query of one row at a time: the attention of decoded positions."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel

    def __call__(self, query, key, value, mask, is_causal=False) -> torch.Tensor:
        if query.shape[0] == query.shape[2] == 1:
            return self.kernel(query, key, value, mask)
        rows = []
        for row in zip(*(x.split(1) for x in (query, key, value, mask)), strict=True):
            queries, keys, values, hidden = row
            pairs = zip(queries.split(1, dim=2), hidden.split(1, dim=2), strict=True)
            rows.append(torch.cat([self.kernel(one, keys, values, seen) for one, seen in pairs], dim=2))
        return torch.cat(rows)


class Tiles:
    """Calls a kernel with a row's positions from one multiple of `TILE` to the next, and the keys up to that: prompts.

    Every tile is full: what the pass does not read of it are zeros. A position is then computed by the same call,
    however the prompt is cut into chunks.

    Args:
        kernel: as in `attention`.
        starts: first position of each row; the others follow it.
        widths: positions of each row.
    """

    def __init__(self, kernel: Kernel, starts: Sequence[int], widths: Sequence[int]):
        self.kernel, self.starts, self.widths = kernel, starts, widths
        self._hidden: dict[int, torch.Tensor] = {}

    def __call__(self, query, key, value, mask, is_causal=False) -> torch.Tensor:
        """Attention of the rows' prompts. With a mask, some positions also see later ones: such a prompt is read in one
        piece, and its row is one call."""
        y = query.new_zeros(*query.shape[:3], value.shape[3])
        for row, (start, width) in enumerate(zip(self.starts, self.widths, strict=True)):
            if not width:  # the row reads nothing in this chunk
                continue
            one = slice(row, row + 1)
            queries, keys, values, own = query[one, :, :width], key[one], value[one], y[one, :, :width]
            if mask is None:
                self._tiled(start, queries, keys, values, own)
            else:
                extent = rounded(start + width)
                own.copy_(
                    self.kernel(queries, keys[:, :, :extent], values[:, :, :extent], mask[one, :, :width, :extent])
                )
        return y

    def _tiled(self, start: int, query, key, value, y) -> None:
        """A row's attention from `start` on, written to `y`."""
        end = start + query.shape[2]
        for first in range(start - start % TILE, end, TILE):
            extent = first + TILE
            begin, stop = max(start, first), min(end, extent)
            tile = F.pad(query[:, :, begin - start : stop - start], (0, 0, begin - first, extent - stop))
            whole = self.kernel(tile, key[:, :, :extent], value[:, :, :extent], self._mask(first, query))
            y[:, :, begin - start : stop - start] = whole[:, :, begin - first : stop - first]

    def _mask(self, first: int, query: torch.Tensor) -> torch.Tensor:
        """[1, 1, TILE, first + TILE]: 0 up to each query's own position, -inf after it; cached."""
        if first not in self._hidden:
            hidden = query.new_full((TILE, TILE), float("-inf")).triu(1)
            self._hidden[first] = F.pad(hidden, (first, 0))[None, None]
        return self._hidden[first]


def rounded(count: int, multiple: int = TILE) -> int:
    """The next multiple of `multiple`."""
    return count + -count % multiple


def widened(x: torch.Tensor, width: int) -> torch.Tensor:
    """[..., n, channels] -> [..., width, channels], with zeros; a copy only if there are any."""
    extra = width - x.shape[-2]
    return F.pad(x, (0, 0, 0, extra)) if extra else x


class RoundedExtents:
    """A cache whose placements reach up to a multiple of `ALONE`, with a mask, or, of prompts, up to one of `TILE`,
    without. All else is the cache's own."""

    def __init__(self, cache: RecurrentDepthCache):
        self.cache = cache

    def __getattr__(self, name: str):
        return getattr(self.cache, name)

    def capacity_for(self, extent: int, limit: int | None = None) -> int:
        """`RecurrentDepthCache.capacity_for`, however the positions are read."""
        return self.cache.capacity_for(rounded(extent), limit)

    def place_rows(self, positions, rows, widths, extents, start=None, first_seat=0, depth=0) -> Placement:
        """`RecurrentDepthCache.place_rows`; `start` would do without a mask."""
        extents = [rounded(extent, ALONE) for extent in extents]
        return self.cache.place_rows(positions, rows, widths, extents, None, first_seat, depth)

    def place_prompt(self, positions, rows, widths, starts, first_seat=0) -> Placement:
        """`RecurrentDepthCache.place_prompt`; `Tiles` makes masks of its own."""
        extents = [rounded(start + width) for start, width in zip(starts, widths, strict=True)]
        at = self.cache.place_rows(positions, rows, widths, extents, None, first_seat)
        at.starts, at.mask = starts, None
        return at

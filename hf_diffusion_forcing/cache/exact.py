"""Attention in which a position's numbers do not depend on the positions beside it.

A kernel adds up a query's products in an order that depends on how many queries and keys it is called with. Measured
(docs/benchmarks/exact.md): alone, a query has the same sums however many masked keys follow, once the number of keys is
a multiple of 16; four queries or more have the same sums as any other four or more with equally many keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from .attention import attention
from .placement import Placement
from .recurrent_depth_cache import RecurrentDepthCache

ALONE = 16
"""The keys of a query alone are a multiple of it."""

TILE = 64
"""A prompt's positions from one multiple of it to the next attend in one call, to the keys up to the second."""

TOGETHER = 4
"""Queries of a tile are a multiple of it: fewer than four round differently."""

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
    """Calls a kernel with one query of each row at a time: the attention of decoded positions."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel

    def __call__(self, query, key, value, mask, is_causal=False) -> torch.Tensor:
        if query.shape[2] == 1:
            return self.kernel(query, key, value, mask)
        pairs = zip(query.split(1, dim=2), mask.split(1, dim=2), strict=True)
        return torch.cat([self.kernel(one, key, value, seen) for one, seen in pairs], dim=2)


class Tiles:
    """Calls a kernel with the queries between two multiples of `TILE` and the keys up to the second: prompts.

    A position then attends in the same way however the prompt is cut into chunks.

    Args:
        kernel: as in `attention`.
        starts: first position of each row; the others follow it.
        widths: positions of each row.
    """

    def __init__(self, kernel: Kernel, starts: Sequence[int], widths: Sequence[int]):
        self.kernel, self.starts, self.widths = kernel, starts, widths
        self._hidden: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, query, key, value, mask, is_causal=False) -> torch.Tensor:
        if mask is None and len(set(self.starts)) == 1:
            return self._row(self.starts[0], query, key, value)
        width, rows = query.shape[2], []
        for row, (start, own) in enumerate(zip(self.starts, self.widths, strict=True)):
            one = slice(row, row + 1)
            y = self._row(start, query[one, :, :own], key[one], value[one], None if mask is None else mask[one])
            rows.append(widened(y, width))
        return torch.cat(rows)

    def _row(self, start: int, query, key, value, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Attention from `start` on, for rows that begin there. With a mask, whose block is read in one piece, the row
        is one tile."""
        width = query.shape[2]
        borders = [0, width]
        if mask is None:
            borders[1:1] = range(TILE - start % TILE, width, TILE)
        parts = []
        for begin, end in pairwise(borders):
            extent = rounded(start + end)
            count = rounded(end - begin, TOGETHER)
            part = widened(query[:, :, begin:end], count)
            if mask is None:
                hidden = self._mask(start + begin, count, extent, query)
            else:
                hidden = widened(mask[:, :, begin:end, :extent], count)
            y = self.kernel(part, key[:, :, :extent], value[:, :, :extent], hidden)
            parts.append(y[:, :, : end - begin])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _mask(self, first: int, width: int, extent: int, query: torch.Tensor) -> torch.Tensor:
        """[1, 1, width, extent]: 0 up to each query's own position, -inf after it; cached."""
        if (first, width) not in self._hidden:
            keys = torch.arange(extent, device=query.device)
            hidden = keys > torch.arange(first, first + width, device=query.device)[:, None]
            self._hidden[first, width] = query.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))[None, None]
        return self._hidden[first, width]


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

    def place_rows(self, positions, rows, widths, extent, start=None, first_seat=0, depth=0) -> Placement:
        """`RecurrentDepthCache.place_rows`; `start` would do without a mask."""
        return self.cache.place_rows(positions, rows, widths, rounded(extent, ALONE), None, first_seat, depth)

    def place_prompt(self, positions, rows, widths, starts, first_seat=0) -> Placement:
        """`RecurrentDepthCache.place_prompt`; `Tiles` makes masks of its own."""
        extent = max(start + width for start, width in zip(starts, widths, strict=True))
        at = self.cache.place_rows(positions, rows, widths, rounded(extent), None, first_seat)
        at.starts, at.mask = starts, None
        return at

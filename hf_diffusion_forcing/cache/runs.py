"""Reads of the cache by positions at different slots, in as few calls of the kernel as pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise

import torch

PADDING = {"cpu": 2}
"""Places that a cohort may leave empty to share a call with its neighbours, by the type of device. On a CPU a place
costs about as much as half a call."""
MORE_PADDING = 64
"""The same on any other device."""


@dataclass(frozen=True)
class Run:
    """Neighbouring positions of one row in cohorts at evenly spaced slots, so that one strided view has what they read.

    A cohort is neighbours at one slot. The query is a grid of cohorts; a shorter one repeats its last position.

    Attributes:
        row: index of the row in the pass.
        cells: indices of the positions in the pass.
        first, step: the cohorts' slots are first, first + step, ..., counted from the first slot of the pass.
        sizes: positions of each cohort.
        device: device of the pass.
    """

    row: int
    cells: slice
    first: int
    step: int
    sizes: tuple[int, ...]
    device: torch.device

    @property
    def is_full(self) -> bool:
        """Whether every cohort fills its places."""
        return min(self.sizes) == max(self.sizes)

    @cached_property
    def padded(self) -> torch.Tensor:
        """int64 [cohorts * width], the position at each place of the grid, if not all are filled."""
        width, begin, index = max(self.sizes), self.cells.start, []
        for size in self.sizes:
            index += [begin + min(place, size - 1) for place in range(width)]
            begin += size
        return torch.tensor(index, device=self.device)

    @cached_property
    def filled(self) -> torch.Tensor:
        """int64 [positions], the place of each position in the grid."""
        width = max(self.sizes)
        places = [row * width + place for row, size in enumerate(self.sizes) for place in range(size)]
        return torch.tensor(places, device=self.device)

    def view(self, stored: torch.Tensor, base: int) -> torch.Tensor:
        """What the cohorts read of a row's entries [slots, ...]: [cohorts, ...], without a copy."""
        first = base + self.first
        return stored[first : first + self.step * (len(self.sizes) - 1) + 1 : self.step or 1]

    def attend(
        self,
        kernel: Callable[..., torch.Tensor],
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor,
    ) -> torch.Tensor:
        """Attention of the run's positions, [positions, heads, head_dim].

        Args:
            kernel: as `Placement.kernel`.
            query: [n, heads, head_dim], of all positions of the pass.
            keys, values: from `view`, [cohorts, kv_heads, extent, head_dim].
            bias: [n, extent], of all positions of the pass.
        """
        index = self.cells if self.is_full else self.padded
        grid = len(self.sizes), max(self.sizes)
        queries = query[index].unflatten(0, grid).transpose(1, 2)
        y = kernel(queries, keys, values, bias[index].unflatten(0, grid)[:, None])
        y = y.transpose(1, 2).flatten(0, 1)
        return y if self.is_full else y[self.filled]


def find_runs(slots: tuple[int, ...], widths: list[int], device: torch.device) -> list[Run]:
    """The runs of a pass, in the order of its positions.

    Args:
        slots: of each position, counted from the first one's.
        widths: positions of each row.
        device: device of the pass.
    """
    room = PADDING.get(device.type, MORE_PADDING)
    runs, begin = [], 0
    for row, width in enumerate(widths):
        cohorts = [(slot, len(list(same))) for slot, same in groupby(slots[begin : begin + width])]
        while cohorts:
            count = _shared(cohorts, room)
            sizes = tuple(size for _, size in cohorts[:count])
            step = cohorts[1][0] - cohorts[0][0] if count > 1 else 0
            runs.append(Run(row, slice(begin, begin + sum(sizes)), cohorts[0][0], step, sizes, device))
            begin, cohorts = begin + sum(sizes), cohorts[count:]
    return runs


def _shared(cohorts: list[tuple[int, int]], room: int) -> int:
    """How many of the first cohorts, each a slot and its positions, share a call."""
    count, widest, step = 1, cohorts[0][1], None
    for (before, _), (slot, size) in pairwise(cohorts):
        apart, wider = slot - before, max(widest, size)
        empty = wider * (count + 1) - widest * count - size
        if apart < 0 or step not in (None, apart) or empty > room:
            break
        count, widest, step = count + 1, wider, apart
    return count

"""Runs a pass on a grid whose row i is row i of the batch, for forward hooks that depend on rows."""

from __future__ import annotations

from typing import Any

import torch

from ..cache import Placement
from ..models.interface import RecurrentDepthInterface
from .reshaped import PaddedModel
from .row import Row


class RowsInPlace(PaddedModel):
    """A model's verbs for a pass over rows end to end, run on a grid [batch, width] whose row i is row i of the batch.

    A forward hook may depend on rows: PEFT's `adapter_names` picks an adapter by row, and a hook may add a tensor
    [batch, 1, channels]. Such hooks see the whole batch in its order, although rows end, swap seats, and have waves of
    different widths. Cells without a position repeat one that exists, and their outputs are dropped. Attention still
    works on the rows end to end.

    Args:
        model: implements `RecurrentDepthInterface`.
        batch: rows of the call.

    Attributes:
        seated: the rows in the order of their seats; set by the owner of the loop.
    """

    def __init__(self, model: RecurrentDepthInterface, batch: int):
        super().__init__(model)
        self.batch = batch
        self.seated: list[Row] = []
        heads = model.decoding_heads
        # The extra-token head calls the embedding and the head on rows end to end, which their hooks may not expect.
        self.decoding_heads = None if heads is None else heads.only("readout", "probe", "start")

    def reshape(self, at: Placement) -> PlacedGrid:
        return PlacedGrid(at, [self.seated[seat].number for seat in at.seats], self.batch)

    def decode(self, s: torch.Tensor, at: Placement, readout: Any = 0, logits_to_keep: Any = 0) -> torch.Tensor:
        if at.grid is None:
            return self.model.decode(s, at, readout, logits_to_keep)
        grid = self.reshaped(at)
        if isinstance(logits_to_keep, int):
            return grid.unpad(self.model.decode(grid.pad(s), grid.at, readout))[:, -logits_to_keep:]
        # The columns that hold a wanted cell, then the wanted cells.
        row, column = grid.cells[logits_to_keep] // grid.width, grid.cells[logits_to_keep] % grid.width
        columns = column.unique()
        logits = self.model.decode(grid.pad(s), grid.at, readout, columns)
        row, column = (index.to(logits.device) for index in (row, torch.searchsorted(columns, column)))
        return logits[row, column][None]

    def exit_gate(self, s: torch.Tensor) -> torch.Tensor:
        """Takes the states of the latest pass only."""
        grid = self._latest
        return grid.unpad(self.model.exit_gate(grid.pad(s)))


class PlacedGrid:
    """The grid of one pass, and the placement that its layers get; attention works on the rows end to end.

    Args:
        owner: placement of the pass over rows end to end.
        numbers: each row's number in the batch.
        batch: rows of the grid.

    Attributes:
        at: the placement for the model's layers.
        width: columns; the rows end in the last one, so that their last positions share a column.
        cells: int64 [n], each position's cell in the flattened grid.
    """

    def __init__(self, owner: Placement, numbers: list[int], batch: int):
        self.owner, self.batch, self.width = owner, batch, max(owner.widths)
        cells = [
            number * self.width + column
            for number, width in zip(numbers, owner.widths, strict=True)
            for column in range(self.width - width, self.width)
        ]
        device = owner.positions.device
        self.cells = torch.tensor(cells, device=device)
        self.places = torch.zeros(batch * self.width, dtype=torch.long, device=device)
        """int64 [batch * width], each cell's position; a cell without one has the first."""
        self.places[self.cells] = torch.arange(len(cells), device=device)
        rows = torch.arange(batch, device=device)[:, None]
        ids = None if owner.ids is None else self.pad(owner.ids)
        self.at = Placement(_EndToEnd(self), self.pad(owner.positions), owner.extent, range(batch), rows, ids=ids)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """[1, n, ...] -> [batch, width, ...]."""
        return x[0].index_select(0, self.places.to(x.device)).unflatten(0, (self.batch, self.width))

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, width, ...] -> [1, n, ...]."""
        return x.flatten(0, 1).index_select(0, self.cells.to(x.device))[None]


class _EndToEnd:
    """The cache of a grid's placement: attends with the placement of the rows end to end."""

    def __init__(self, grid: PlacedGrid):
        self.grid = grid

    def slot(self, depth: int) -> Any:
        """The placement of the grid has depth 0, so `depth` counts the recurrences of the pass."""
        return self.grid.owner.slot(depth)

    def attend(self, layer: int, query, key, value, at: Placement, slot: Any) -> torch.Tensor:
        heads = (self.grid.unpad(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
        self.grid.owner.kernel = at.kernel
        y = self.grid.owner.attend(layer, *heads, slot)
        return self.grid.pad(y.transpose(1, 2)).transpose(1, 2)

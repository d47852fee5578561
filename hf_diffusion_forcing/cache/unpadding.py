"""Ragged rows without their padding."""

import torch


class Unpadding:
    """What stands in a grid [batch, width] as one row of its cells, and back.

    Layers that treat positions one by one are spared the padding of ragged rows; attention brings the rows back
    (FlashAttention's `unpad_input` and `pad_input`).

    Args:
        cells: int64 [n], the cells that are no padding, counted row by row. None leaves every tensor as it is.
        places: int64 [batch, width], for each cell its place among `cells`; any place for padding.

    Attributes:
        rows: int64 [n], the row of each cell.
        batch: rows of the grid; None where there is none.
    """

    def __init__(self, cells: torch.Tensor | None = None, places: torch.Tensor | None = None):
        self.cells, self.places = cells, places
        self.batch = None if places is None else len(places)
        self.rows = None if cells is None else cells.div(places.shape[1], rounding_mode="floor")

    @classmethod
    def of(cls, kept: torch.Tensor, count: int) -> "Unpadding":
        """That of the `count` cells which are True in bool [batch, width]."""
        flat = kept.flatten()
        # Sorted to the front in their order: nonzero() would wait for the device to say how many there are.
        cells = flat.logical_not().byte().argsort(stable=True)[:count]
        return cls(cells, (flat.cumsum(0) - 1).clamp_min(0).view(kept.shape))

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, width, ...] -> [1, n, ...]."""
        return x if self.cells is None else x.flatten(0, 1).index_select(0, self.cells.to(x.device))[None]

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """[1, n, ...] -> [batch, width, ...], where padding repeats some other cell."""
        if self.cells is None:
            return x
        return x[0].index_select(0, self.places.flatten().to(x.device)).unflatten(0, self.places.shape)

    def to(self, device: torch.device) -> "Unpadding":
        """This unpadding on another device."""
        return self if self.cells is None else Unpadding(self.cells.to(device), self.places.to(device))

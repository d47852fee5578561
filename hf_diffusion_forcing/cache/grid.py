"""Converts rows of different widths between end-to-end order and the grid that attention needs."""

from collections.abc import Sequence

import torch


class Grid:
    """Moves positions of several rows, end to end, into a grid [rows, width] and back.

    Layers that process positions independently work on [1, n, ...] without padding; only attention needs separate rows
    (like FlashAttention's `pad_input` and `unpad_input`).

    Args:
        widths: positions of each row, in order; their sum is n.
        device: device of the index tensors.
    """

    def __init__(self, widths: Sequence[int], device: torch.device):
        self.widths = list(widths)
        self.rows, self.width = len(widths), max(widths)
        self.is_full = min(widths) == self.width
        """Whether all rows have the same width, so that the grid is a view."""
        self.cells = self.places = None
        if not self.is_full:
            cells = [row * self.width + column for row, width in enumerate(widths) for column in range(width)]
            self.cells = torch.tensor(cells, device=device)
            """int64 [n], each position's cell in the flattened grid."""
            self.places = torch.zeros(self.rows * self.width, dtype=torch.long, device=device)
            """int64 [rows * width], each cell's position; padding repeats the first."""
            self.places[self.cells] = torch.arange(len(cells), device=device)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """[1, n, ...] -> [rows, width, ...]; padding repeats the first position."""
        if self.is_full:
            return x.view(self.rows, self.width, *x.shape[2:]) if self.rows > 1 else x
        return x[0].index_select(0, self.places.to(x.device)).unflatten(0, (self.rows, self.width))

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, width, ...] -> [1, n, ...]."""
        if self.is_full:
            return x.reshape(1, -1, *x.shape[2:]) if self.rows > 1 else x
        return x.flatten(0, 1).index_select(0, self.cells.to(x.device))[None]

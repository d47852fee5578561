"""Initial states of new positions, drawn ahead."""

import torch

from ..models.interface import RecurrentDepthInterface
from .row import Row
from .wave import Wave

BLOCK = 32
"""Positions drawn at once. The noise is keyed by position, so drawing it early changes only the time."""


class StateStarts:
    """s0 of the positions that enter a wave.

    Noise is drawn for `BLOCK` positions of a row at a time, because one position costs as many small operations as 32.
    A state that starts from the injected embedding is made once the embedding is known.

    Args:
        model: whose `initialize_state` to use.
        scale: factor on the noise (`state_scale`).
    """

    def __init__(self, model: RecurrentDepthInterface, scale: float):
        self.model, self.scale = model, scale

    def take(self, wave: Wave, e: torch.Tensor) -> torch.Tensor | None:
        """Initial states of the wave's new positions, [1, new, channels]; None if there are none.

        Args:
            e: [1, n, channels], the wave's injected embeddings.
        """
        if not wave.new:
            return None
        if not self.model.starts_from_noise:
            e, positions, seeds = (wave.take(x, wave.new) for x in (e, wave.positions, wave.seeds))
            return self.model.initialize_state(e, positions, seeds, self.scale)
        starts = []
        for row, cells in zip(wave.rows, wave.split(wave.cells), strict=True):
            if count := sum(cell < 0 for cell in cells):
                # New positions are at the end of a row's wave.
                starts.append(self._of_row(row, row.front + len(cells) - count, count, e, wave.positions))
        return starts[0] if len(starts) == 1 else torch.cat(starts, dim=1)

    def _of_row(self, row: Row, first: int, count: int, e: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Initial states of `count` positions of a row, starting at `first`: [1, count, channels]."""
        if row.starts is None or not row.starts[0] <= first <= row.starts[0] + row.starts[1].shape[1] - count:
            ahead = torch.arange(first, first + max(BLOCK, count), device=positions.device)[None]
            like, seeds = e[:, :1].expand(-1, ahead.shape[1], -1), torch.full_like(ahead, row.seed)
            row.starts = first, self.model.initialize_state(like, ahead, seeds, self.scale)
        begin, block = row.starts
        return block[:, first - begin : first - begin + count]

"""The state starts of new positions, drawn ahead."""

from __future__ import annotations

import torch

from ..models.interface import RecurrentDepthInterface
from .wavefront import Wavefront

BLOCK = 32
"""Positions drawn at once. The noise is keyed by position, so drawing it early changes nothing but the time."""


class StateStarts:
    """s0 of the positions that enter a wave.

    A start made of noise is drawn for `BLOCK` positions at a time: a position or 32, it costs the same dozen of small
    operations. A start made from the injected embedding is made when the embedding is there.

    Args:
        model: whose `initialize_state` to use.
        scale: factor on the noise (`state_scale`).
    """

    def __init__(self, model: RecurrentDepthInterface, scale: float):
        self.model, self.scale = model, scale
        self.block: torch.Tensor | None = None
        self.starts: torch.Tensor | None = None
        self.first: list[int] = []

    def take(self, wave: Wavefront, e: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
        """Starts of the columns from `wave.first_fresh` on, [rows, width - first_fresh, channels].

        Args:
            e: [rows, width, channels], the wave's injected embeddings.
            positions: int64 [rows, width].
            seeds: int64 [rows].
        """
        first, width = wave.first_fresh, wave.width
        if first == width:
            return e[:, first:]
        if not self.model.starts_from_noise or width - first > BLOCK:
            return self.model.initialize_state(e[:, first:], positions[:, first:], seeds, self.scale)
        wanted = [front + first for front in wave.fronts]
        held = self.block is not None and len(self.first) == len(wanted)
        offsets = [want - start for want, start in zip(wanted, self.first, strict=True)] if held else []
        if not held or min(offsets) < 0 or max(offsets) + width - first > BLOCK:
            self.first, offsets = wanted, [0] * len(wanted)
            self.starts = torch.tensor(wanted, device=positions.device)[:, None]
            ahead = self.starts + torch.arange(BLOCK, device=positions.device)
            like = e[:, :1].expand(-1, BLOCK, -1)
            self.block = self.model.initialize_state(like, ahead, seeds, self.scale)
        if len(set(offsets)) == 1:
            return self.block[:, offsets[0] : offsets[0] + width - first]
        # On the device, where the positions are; those past a row's width may take any start.
        columns = (positions[:, first:] - self.starts).clamp(0, BLOCK - 1).to(self.block.device)
        return self.block[torch.arange(len(columns), device=columns.device)[:, None], columns]

"""Attention without a cache."""

import torch

from .placement import Placement


class NoCache:
    """Attention among the positions of one call only, for training and `forward(use_cache=False)`."""

    columns = 0

    def place(
        self,
        positions: torch.Tensor,
        start: int | None = None,
        sequences: torch.Tensor | None = None,
        block: torch.Tensor | None = None,
    ) -> Placement:
        """The placement of a pass (see `RecurrentDepthCache.place`).

        Args:
            sequences: int64 [batch, width], of packed rows: which of its row's sequences a position belongs to.
                Positions see only those of their own sequence; then `start` is None.
            block: bool [batch, width], positions that also see the later ones among them.
        """
        batch, width = positions.shape
        rows = torch.arange(batch, device=positions.device)[:, None]
        if start is not None and block is None:
            return Placement(self, positions, width, range(batch), rows, start=start, is_causal=True)
        query = positions.clamp_min(0)[:, None, :, None]
        key = positions[:, None, None, :]
        mask = key <= query
        if block is not None:
            mask |= block[:, None, :, None] & block[:, None, None, :]
        mask &= key >= 0
        if sequences is not None:
            mask &= sequences[:, None, :, None] == sequences[:, None, None, :]
        return Placement(self, positions, width, range(batch), rows, start=start, mask=mask)

    def slot(self, depth: int) -> int:
        """Always 0: no recurrence keeps anything."""
        return 0

    def settle(self, at: Placement, num_steps: int) -> None:
        """Does nothing: there are no entries."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, at: Placement, slot: int = 0
    ) -> torch.Tensor:
        """Attention of the positions to each other, [batch, heads, width, head_dim]."""
        at = at.to(query.device)
        return at.kernel(query, key, value, at.bias(query), at.is_causal)

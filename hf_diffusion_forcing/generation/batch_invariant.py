"""Runs a model so that a position's numbers do not depend on the positions beside it (`exact=True`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..cache import Placement, exact_kernel
from ..cache.exact import widened
from ..models.interface import RecurrentDepthInterface
from .reshaped import PaddedModel
from .rounding import Rounding


class BatchInvariant(PaddedModel):
    """A model's verbs for passes over rows end to end, at widths that round alike.

    A layer's sums over one position may be added in another order than those over sixteen. So a pass is padded to a
    width at which every layer gives the same numbers as at other such widths (`Rounding` finds them), and attention,
    which works on the real positions, uses a kernel that treats every query alike (`exact_kernel`).

    Args:
        model: implements `RecurrentDepthInterface`.
        device: device of the ids.
    """

    def __init__(self, model: RecurrentDepthInterface, device: torch.device):
        super().__init__(model)
        self.device = device
        self._rounding: Rounding | None = None

    def reshape(self, at: Placement) -> PaddedPass:
        return PaddedPass(at, self._width(at.positions.shape[1]))

    def _width(self, positions: int) -> int:
        """The width of a pass over so many positions."""
        if self._rounding is None:
            # Not earlier: the passes may be under autocast.
            self._rounding = Rounding.of(self.model, self.device)
        return self._rounding.width(self.model, positions)

    def initialize_state(
        self, e: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor, scale: float = 1.0
    ) -> torch.Tensor:
        if seeds.ndim == 1:  # a grid of rows, with a seed for each
            return self.model.initialize_state(e, positions, seeds, scale)
        count = e.shape[1]
        e, positions, seeds = (padded_to(self._width(count), x) for x in (e, positions, seeds))
        return self.model.initialize_state(e, positions, seeds, scale)[:, :count]

    def decode(self, s: torch.Tensor, at: Placement, readout: Any = 0, logits_to_keep: Any = 0) -> torch.Tensor:
        if at.grid is None:
            return self.model.decode(s, at, readout, logits_to_keep)
        padded = self.reshaped(at)
        if isinstance(logits_to_keep, int):
            first = s.shape[1] - logits_to_keep if logits_to_keep else 0
            logits_to_keep = torch.arange(first, s.shape[1], device=s.device)
        kept = len(logits_to_keep)
        # The head has a width of its own.
        index = F.pad(logits_to_keep, (0, self._width(kept) - kept))
        return self.model.decode(padded.pad(s), padded.at, readout, index)[:, :kept]


class PaddedPass:
    """A pass padded to a width, for a model's layers; attention works on the positions that exist.

    Args:
        owner: placement of the pass over rows end to end.
        width: positions that the layers get; those past the real ones are token 0 at position 0.

    Attributes:
        at: the placement for the layers.
    """

    def __init__(self, owner: Placement, width: int):
        self.owner, self.width, self.count = owner, width, owner.positions.shape[1]
        ids = None if owner.ids is None else self.pad(owner.ids)
        self.at = Placement(
            _RealPositions(self), self.pad(owner.positions), owner.extent, owner.seats, self.pad(owner.rows), ids=ids
        )

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """[1, n, ...] -> [1, width, ...]."""
        return padded_to(self.width, x)

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """[1, width, ...] -> [1, n, ...]."""
        return x[:, : self.count]


def padded_to(width: int, x: torch.Tensor) -> torch.Tensor:
    """[1, n, ...] -> [1, width, ...], with zeros."""
    extra = width - x.shape[1]
    return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, extra)) if extra else x


class _RealPositions:
    """The cache of a padded pass: attends from the real positions alone."""

    def __init__(self, padded: PaddedPass):
        self.padded = padded

    def slot(self, depth: int) -> Any:
        return self.padded.owner.slot(depth)

    def attend(self, layer: int, query, key, value, at: Placement, slot: Any) -> torch.Tensor:
        padded, owner = self.padded, self.padded.owner
        if not owner.is_exact:
            owner.kernel, owner.is_exact = exact_kernel(at.kernel, owner), True
        heads = (x[:, :, : padded.count] for x in (query, key, value))
        y = owner.attend(layer, *heads, slot)
        return widened(y, padded.width)

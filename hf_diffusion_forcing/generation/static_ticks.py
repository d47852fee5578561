"""Runs the core passes of ticks in few shapes, by compiled code (`compile=True`)."""

from __future__ import annotations

import torch

from ..cache import Placement, RecurrentDepthCache
from ..cache.static import SlotEntries, StaticPlaces, StaticShape
from ..models.interface import RecurrentDepthInterface
from .compiled import CorePasses
from .reshaped import ReshapedModel


class StaticTicks(ReshapedModel):
    """A model whose core passes over the waves of rows have few shapes, each of which is compiled once.

    The rows of a pass, the places of a row and the keys that attention reads are each rounded up to a `bucket`. Inputs
    are copied into tensors that all passes of a shape share. Empty places are computed too; their keys and values go to
    the cache's last place, which is never read, and their results are dropped. Prompts, prelude, coda and head run as
    they are.

    Args:
        model: implements `RecurrentDepthInterface`.
        cache: has the rows' seats.
    """

    def __init__(self, model: RecurrentDepthInterface, cache: RecurrentDepthCache):
        super().__init__(model)
        self.cache = cache
        self.core = CorePasses(model)
        self._places: dict[tuple[int, int | None, int], StaticPlaces] = {}
        self._inputs: dict[tuple[str, torch.Size, torch.dtype], torch.Tensor] = {}

    def reshape(self, at: Placement) -> StaticPass:
        return StaticPass(self, at)

    def reshaped(self, at: Placement) -> StaticPass:
        """The pass of a placement, made again if seats that it pads to have been freed since."""
        if self._latest is not None and at.seats.start + self._latest.shape.rows > self.cache.seats:
            self._latest = None
        return super().reshaped(at)

    def recur(self, s: torch.Tensor, e: torch.Tensor, at: Placement, depth: int) -> torch.Tensor:
        if at.grid is None or at.starts is not None:  # not a tick
            return self.model.recur(s, e, at, depth)
        return self.reshaped(at).recur(s, e, depth)

    def places(self, shape: StaticShape, device: torch.device) -> StaticPlaces:
        """The tensors that passes of a shape share, whatever their extent."""
        key = shape.rows, shape.cohorts, shape.width
        if key not in self._places:
            self._places[key] = StaticPlaces(shape, device)
        return self._places[key]

    def input(self, name: str, shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
        """The tensor that passes of a shape share for an input."""
        key = name, shape, like.dtype
        if key not in self._inputs:
            self._inputs[key] = like.new_zeros(shape)
        return self._inputs[key]


class StaticPass:
    """One pass in a static shape.

    Args:
        ticks: has the shared tensors.
        owner: placement of the pass over rows end to end.
    """

    def __init__(self, ticks: StaticTicks, owner: Placement):
        self.ticks, self.owner = ticks, owner
        self.shape = StaticShape.of(owner, ticks.cache)
        self.places = ticks.places(self.shape, owner.positions.device)
        self.index = self.places.take(owner)
        """int64 [n], the place of each position."""
        self._embedding: tuple[torch.Tensor, torch.Tensor] | None = None
        """The latest injected embedding, as given and padded; usually all recurrences of a pass have the same."""

    def recur(self, s: torch.Tensor, e: torch.Tensor, depth: int) -> torch.Tensor:
        """`RecurrentDepthInterface.recur` for the positions end to end."""
        if self._embedding is None or self._embedding[0] is not e:
            self._embedding = e, self.pad("e", e)
        entries = SlotEntries.of(self.ticks.cache, self.owner, self.shape, depth)
        y = self.ticks.core.run(self.pad("s", s), self._embedding[1], self.places, entries, self.shape.extent)
        return y.index_select(1, self.index)

    def pad(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """[1, n, ...] -> [1, places, ...]; empty places keep what earlier passes left there."""
        padded = self.ticks.input(name, torch.Size((*self.places.positions.shape, *x.shape[2:])), x)
        padded[0].index_copy_(0, self.index, x[0])
        return padded

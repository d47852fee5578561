"""Runs a model's verbs on a pass of another shape than the rows end to end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch

from ..cache import Placement
from ..models.interface import RecurrentDepthInterface


class ReshapedModel(ABC):
    """A model whose verbs take rows end to end and run in another shape. Everything but the verbs is the model's own.

    Args:
        model: implements `RecurrentDepthInterface`.
    """

    def __init__(self, model: RecurrentDepthInterface):
        self.model = model
        self._latest: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @abstractmethod
    def reshape(self, at: Placement) -> Any:
        """Make the pass of a placement over rows end to end; its `owner` is that placement."""

    def reshaped(self, at: Placement) -> Any:
        """The pass of a placement, kept while the verbs are called with the same one."""
        if self._latest is None or self._latest.owner is not at:
            self._latest = self.reshape(at)
        return self._latest


class ReshapedPass(Protocol):
    """One pass in the shape that a model's layers get.

    Attributes:
        owner: placement of the pass over rows end to end.
        at: the placement for the layers.
    """

    owner: Placement
    at: Placement

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """[1, n, ...] in the other shape."""

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `pad`."""


class PaddedModel(ReshapedModel):
    """A model whose `embed` and `recur` run on padded tensors, at a placement of their own."""

    @abstractmethod
    def reshape(self, at: Placement) -> ReshapedPass:
        """Make the padded pass of a placement over rows end to end."""

    def embed(
        self, input_ids: torch.Tensor | None, at: Placement, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        if at.grid is None:
            return self.model.embed(input_ids, at, inputs_embeds)
        at.ids = input_ids  # the passes after this one may be reshaped again
        own = self.reshaped(at)
        ids, embeds = (None if x is None else own.pad(x) for x in (input_ids, inputs_embeds))
        return own.unpad(self.model.embed(ids, own.at, embeds))

    def recur(self, s: torch.Tensor, e: torch.Tensor, at: Placement, depth: int) -> torch.Tensor:
        if at.grid is None:
            return self.model.recur(s, e, at, depth)
        own = self.reshaped(at)
        return own.unpad(self.model.recur(own.pad(s), own.pad(e), own.at, depth))

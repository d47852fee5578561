"""Latent processors change latent states and injected embeddings between recurrences."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ..settings.registry import LATENT_PROCESSORS
from .refinement import Refinement


class LatentProcessor:
    """Changes tensors of a tick at four points; by default each method returns its input.

    Every method takes a tensor [batch, width, channels] and returns another; it must not modify its input in place.
    Subclass it as a dataclass and pass an instance; `register_latent_processor` gives it a name for settings.

    Attributes:
        name: its name in settings.
    """

    name: ClassVar[str]

    def process_embedding(self, e: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """Change the injected embedding, after the prelude and before any states exist."""
        return e

    def process_start(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """Change the states of new positions: `state` is s0 where `refinement.fresh`, and the last tick's elsewhere.

        Return the states of all other positions unchanged.
        """
        return state

    def process_state(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """Change the states before the tick's recurrences."""
        return state

    def process_refined(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """Change the states after the tick's recurrences, before they are read out and kept for the next tick.

        The core's keys and values do not change.
        """
        return state

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which `latent_processor` makes an equal one; TypeError for an unregistered class."""
        return LATENT_PROCESSORS.to_dict(self)


def register_latent_processor(processor_class: type[LatentProcessor]) -> type[LatentProcessor]:
    """Class decorator: registers your processor under its `name` for settings. Put it above `@dataclass`.

    Raises:
        TypeError: the class is not a dataclass, does not subclass `LatentProcessor`, or has no `name`.
        ValueError: the name belongs to another class.
    """
    return LATENT_PROCESSORS.register(processor_class)


class LatentProcessorList(list):
    """Applies processors one after the other, like `LogitsProcessorList`."""

    def process_embedding(self, e: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """`LatentProcessor.process_embedding` of each in turn."""
        for processor in self:
            e = processor.process_embedding(e, refinement)
        return e

    def process_start(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """`LatentProcessor.process_start` of each in turn."""
        for processor in self:
            state = processor.process_start(state, refinement)
        return state

    def process_state(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """`LatentProcessor.process_state` of each in turn."""
        for processor in self:
            state = processor.process_state(state, refinement)
        return state

    def process_refined(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """`LatentProcessor.process_refined` of each in turn."""
        for processor in self:
            state = processor.process_refined(state, refinement)
        return state

    def to_list(self) -> list[dict[str, Any]]:
        """Plain values from which `latent_processor` makes an equal list; TypeError for an unregistered class."""
        return [processor.to_dict() for processor in self]


def latent_processor(spec: LatentProcessor | str | dict | list) -> LatentProcessor | LatentProcessorList:
    """A latent processor, or a list of them, from settings.

    Args:
        spec: a name in `LATENT_PROCESSORS`; a dict {"name": ..., **parameters}; an instance, which is returned
            unchanged; or a list of these, which gives a `LatentProcessorList`.

    Raises:
        TypeError: `spec` is none of these, or a parameter has the wrong type.
        ValueError: a name or parameter is unknown (suggests the nearest), or a value is out of range.
    """
    if isinstance(spec, (list, tuple)):
        return LatentProcessorList(LATENT_PROCESSORS.build(one) for one in spec)
    return LATENT_PROCESSORS.build(spec)

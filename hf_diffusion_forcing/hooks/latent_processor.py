"""What may be done to latent states and injected embeddings between recurrences."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ..settings.registry import LATENT_PROCESSORS
from .refinement import Refinement


class LatentProcessor:
    """Changes what a tick works on, at four places; each method is the identity unless a subclass says otherwise.

    Every method takes and returns a tensor [batch, width, channels] and leaves the one it was given as it was.
    Subclass it as a dataclass and pass an instance; `register_latent_processor` gives it a name for settings.

    Attributes:
        name: what settings call it.
    """

    name: ClassVar[str]

    def process_embedding(self, e: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """The injected embedding, after the prelude and before there are states."""
        return e

    def process_start(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """The states a tick starts from: s0 where `refinement.fresh`, carried from the last tick elsewhere.

        Only what is returned at fresh positions is used.
        """
        return state

    def process_state(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """The states before the tick's recurrences."""
        return state

    def process_refined(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        """The states after the tick's recurrences, before they are read out and carried on.

        The core's keys and values stay as the last recurrence wrote them.
        """
        return state

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `latent_processor` makes an equal one from; TypeError for an unregistered class."""
        return LATENT_PROCESSORS.to_dict(self)


def register_latent_processor(processor_class: type[LatentProcessor]) -> type[LatentProcessor]:
    """Class decorator: lets settings name your own processor. It stands above `@dataclass`.

    Raises:
        TypeError: not a dataclass that subclasses `LatentProcessor`, or without a `name`.
        ValueError: the name belongs to another class.
    """
    return LATENT_PROCESSORS.register(processor_class)


class LatentProcessorList(list):
    """Processors applied one after the other, as `LogitsProcessorList` is of logits processors."""

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
        """Plain values that `latent_processor` makes an equal list from; TypeError for an unregistered class."""
        return [processor.to_dict() for processor in self]


def latent_processor(spec: LatentProcessor | str | dict | list) -> LatentProcessor | LatentProcessorList:
    """A latent processor, or a list of them, from settings.

    Args:
        spec: a name in `LATENT_PROCESSORS`; a dict {"name": ..., **parameters}; an instance, which is returned as it
            is; or a list of such, which gives a `LatentProcessorList`.

    Raises:
        TypeError: `spec` is none of these, or a parameter has the wrong type.
        ValueError: an unknown name or parameter (names the nearest), or a value out of range.
    """
    if isinstance(spec, (list, tuple)):
        return LatentProcessorList(LATENT_PROCESSORS.build(one) for one in spec)
    return LATENT_PROCESSORS.build(spec)

"""What a recurrent-depth model can do. Samplers use these verbs and know nothing else about a family."""

from abc import ABCMeta, abstractmethod

import torch

from ..cache import Placement, RecurrentDepthCache, Slots


class RecurrentDepthInterface(metaclass=ABCMeta):
    """The verbs of a recurrent-depth language model: logits = decode(recur(... initialize_state(embed(ids)))).

    `at` is the `Placement` of the pass, made by `cache.place()` or `cache.place_rows()` and handed from verb to verb:
    tensors are [batch, width, ...], or [1, n, ...] where the positions of several rows stand end to end. Attention goes
    through `at.attend(layer, query, key, value, slot)`, with layers counted over prelude, core and coda, and `slot`
    from `at.slot(depth)` in the core, `readout` in the coda, 0 in the prelude.
    """

    has_injected_embedding: bool = True
    """Whether the core reads e at every recurrence; diffusion forcing needs it."""

    starts_from_noise: bool = True
    """Whether `initialize_state` looks at e for its shape and dtype alone, so that samplers may call it early."""

    has_exit_gate: bool = False
    """Whether there is an `exit_gate`; the criterion of that name needs it."""

    @abstractmethod
    def embed(self, input_ids: torch.Tensor, at: Placement) -> torch.Tensor:
        """The prelude: token ids int64 [batch, width] -> injected embedding e [batch, width, channels]."""

    @abstractmethod
    def initialize_state(
        self, e: torch.Tensor, positions: torch.Tensor, seeds: torch.Tensor, scale: float = 1.0
    ) -> torch.Tensor:
        """s0 [batch, width, channels], from position-keyed noise; `scale` 0.0 gives zeros.

        The only verb that attends to nothing: it takes the positions alone, and may be called before a pass is placed.

        Args:
            positions: int64 [batch, width].
            seeds: int64 [batch], or [batch, width] where positions have seeds of their own.
        """

    @abstractmethod
    def recur(self, s: torch.Tensor, e: torch.Tensor, at: Placement, depth: int) -> torch.Tensor:
        """One pass of the core: s [batch, width, channels] -> s, same shape.

        Args:
            depth: which recurrence of this pass, 0-based; `at.depth` counts those before it.
        """

    @abstractmethod
    def decode(
        self,
        s: torch.Tensor,
        at: Placement,
        readout: int | Slots = 0,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """Coda and head: logits [batch, kept, vocabulary].

        Args:
            readout: the coda timeline (0 is the only one of a plain cache), or one for each position.
            logits_to_keep: the last n columns (0: all), or the columns of an index tensor: the coda's keys and values
                are written for all anyway.
        """

    def exit_gate(self, s: torch.Tensor) -> torch.Tensor:
        """Of models with an exit gate: logits [batch, width] of leaving after the recurrence that made s."""
        raise NotImplementedError(f"{type(self).__name__} has no exit gate.")

    @abstractmethod
    def new_cache(self, num_steps: int, kv_sharing: str | int = "last", capacity: int = 0) -> RecurrentDepthCache:
        """An empty cache of this model's shape."""

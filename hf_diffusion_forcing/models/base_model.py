"""The base model shared by all families: a language model without its head, as AutoModel loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..cache import Placement, RecurrentDepthCache, Slots
from ..compat import CACHE, CacheOutput, takes_cache
from .rotary import inverse_frequencies, rotations
from .unrolled import UnrolledModel


@dataclass
class RecurrentDepthModelOutput(CacheOutput, BaseModelOutputWithPast):
    """`BaseModelOutputWithPast` with latents.

    Attributes:
        last_hidden_state: [batch, width, channels], the input of the head.
        latents: [batch, width, channels], the last recurrence's states as the coda reads them.
    """

    latents: torch.FloatTensor | None = None


class RecurrentDepthModel(UnrolledModel):
    """Prelude, core and coda, whose `forward()` is embed, num_steps x recur, read_out.

    A family inherits from it and its own `PreTrainedModel`, in this order, and implements the verbs `embed`,
    `initialize_state`, `recur`, `new_cache` (see `RecurrentDepthInterface`) and `read_out`; each calls `rotate(at)`
    before its layers run. The config also needs `head_dim` and `rope_parameters`.
    """

    def __init__(self, config):
        super().__init__(config)
        self.inverse_frequencies = inverse_frequencies(config)
        # By device: a list would be copied for every placement, and a buffer would be cast with the weights.
        self._frequencies: dict[torch.device, torch.Tensor] = {}

    def rotate(self, at: Placement) -> None:
        """Fill in `at.rotary`, the rotations of the pass's queries and keys, unless an earlier verb has."""
        if at.rotary is None:
            device = at.positions.device
            frequencies = self._frequencies.get(device)
            if frequencies is None:
                frequencies = torch.tensor(self.inverse_frequencies, dtype=torch.float32, device=device)
                if not torch.compiler.is_compiling():  # what a graph makes must not outlive it
                    self._frequencies[device] = frequencies
            at.rotary = rotations(at.positions, frequencies)

    def read_out(
        self,
        s: torch.Tensor,
        at: Placement,
        readout: int | Slots = 0,
        kept: slice | torch.Tensor = slice(None),
    ) -> torch.Tensor:
        """The coda: states [batch, width, channels] -> input of the head, [batch, kept, channels].

        Args:
            readout: see `RecurrentDepthInterface.decode`.
            kept: the columns to return; the coda's keys and values are written for all columns.
        """
        raise NotImplementedError

    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        cache: RecurrentDepthCache | None = None,
        use_cache: bool | None = None,
        num_steps: int | None = None,
        state_scale: float = 1.0,
        seeds: torch.LongTensor | None = None,
        on_recurrence: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> RecurrentDepthModelOutput | tuple:
        """Hidden states of every position after `num_steps` recurrences; meaningless at padding.

        Arguments as in `RecurrentDepthForCausalLM.forward`.

        Raises:
            ValueError: `num_steps` < 1, the sequence exceeds the context, the mask has another shape, or an argument
                is not supported.
        """
        hidden, s, cache = self.read_after_unroll(
            self.read_out,
            input_ids,
            attention_mask,
            cache,
            use_cache,
            num_steps,
            state_scale,
            seeds,
            on_recurrence,
            kwargs,
        )
        output = RecurrentDepthModelOutput(last_hidden_state=hidden, latents=self.latents(s), **{CACHE: cache})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

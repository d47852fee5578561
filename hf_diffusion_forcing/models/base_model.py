"""The base model shared by all families: a language model without its head, as AutoModel loads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..cache import Placement, RecurrentDepthCache, Slots
from ..compat import CACHE, CacheOutput, takes_cache
from .forward_call import ForwardCall
from .rotary_positions import RotaryPositions
from .unrolled import UnrolledModel


@dataclass
class RecurrentDepthModelOutput(CacheOutput, BaseModelOutputWithPast):
    """`BaseModelOutputWithPast` with latents.

    Attributes:
        last_hidden_state: [batch, width, channels], the input of the head.
        hidden_states, attentions: if asked for; see `RecurrentDepthForCausalLM.forward`.
        latents: [batch, width, channels], the last recurrence's states as the coda reads them.
    """

    latents: torch.FloatTensor | None = None


class RecurrentDepthModel(RotaryPositions, UnrolledModel):
    """Prelude, core and coda, whose `forward()` is embed, num_steps x recur, read_out.

    A family inherits from it and its own `PreTrainedModel`, in this order, and implements the verbs `embed`,
    `initialize_state`, `recur`, `new_cache` (see `RecurrentDepthInterface`) and `read_out`; each calls `rotate(at)`
    before its layers run. The config also needs `head_dim` and `rope_parameters`.
    """

    def __init__(self, config):
        super().__init__(config)
        self.take_frequencies(config)

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

    def read(self, s, at, logits_to_keep, keeps_hidden):
        hidden = self.read_out(s, at)
        return hidden, (hidden,) if keeps_hidden else ()

    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: RecurrentDepthCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_steps: int | None = None,
        state_scale: float = 1.0,
        seeds: torch.LongTensor | None = None,
        on_recurrence: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> RecurrentDepthModelOutput | tuple:
        """Hidden states of every position after `num_steps` recurrences; meaningless at padding.

        Arguments as in `RecurrentDepthForCausalLM.forward`.

        Raises:
            ValueError, TypeError: as there.
        """
        done = self.forward_pass(
            ForwardCall(
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                token_type_ids=token_type_ids,
                cache=cache,
                use_cache=use_cache,
                num_steps=num_steps,
                state_scale=state_scale,
                seeds=seeds,
                on_recurrence=on_recurrence,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                others=kwargs,
            )
        )
        output = RecurrentDepthModelOutput(
            last_hidden_state=done.readout,
            hidden_states=done.hidden_states,
            attentions=done.attentions,
            latents=self.latents(done.states),
            **{CACHE: done.cache},
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

"""The arguments of `forward()`, and what is refused of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..cache import RecurrentDepthCache, check_cache
from .positions import FLASH_ARGUMENTS, check_flash_arguments

PASSED_BY_OTHERS = ("num_items_in_batch", "tokenizer", "assistant_tokenizer", "cache_position")
"""Arguments that `forward()` ignores: Trainer passes the first for the loss, generate() passes on the tokenizer for
stop strings, and older callers pass the last, which the cache knows itself."""


def check_embeds_shape(embeds: torch.Tensor) -> None:
    """ValueError unless embeddings are [batch, width, channels]."""
    if embeds.ndim != 3:
        raise ValueError(
            f"inputs_embeds has shape {tuple(embeds.shape)}; it must be [batch, width, channels], as "
            "get_input_embeddings() returns."
        )


@dataclass(kw_only=True)
class ForwardCall:
    """The arguments of a `forward()`; see `RecurrentDepthForCausalLM.forward`.

    Attributes:
        others: further keywords of the caller; none may change the result.
    """

    input_ids: torch.LongTensor | None
    inputs_embeds: torch.Tensor | None
    attention_mask: torch.Tensor | None
    position_ids: torch.LongTensor | None
    token_type_ids: torch.LongTensor | None
    cache: RecurrentDepthCache | None
    use_cache: bool | None
    num_steps: int | None
    state_scale: float
    seeds: torch.LongTensor | None
    on_recurrence: Callable[[torch.Tensor, torch.Tensor], None] | None
    output_hidden_states: bool | None
    output_attentions: bool | None
    others: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """Batch and width."""
        given = self.input_ids if self.inputs_embeds is None else self.inputs_embeds
        return given.shape[0], given.shape[1]

    @property
    def device(self) -> torch.device:
        return (self.input_ids if self.inputs_embeds is None else self.inputs_embeds).device

    def check(self) -> None:
        """ValueError or TypeError for arguments that no model takes."""
        if (self.input_ids is None) == (self.inputs_embeds is None):
            both = "neither" if self.input_ids is None else "both"
            raise ValueError(f"forward() needs either input_ids or inputs_embeds, and got {both}: pass one of them.")
        if self.inputs_embeds is not None:
            check_embeds_shape(self.inputs_embeds)
        if self.cache is not None:
            check_cache(self.cache)
        known = (*PASSED_BY_OTHERS, *FLASH_ARGUMENTS)
        for name, value in self.others.items():
            if name not in known and value is not None and value is not False:
                raise ValueError(f"forward() does not take {name}: leave it out.")
        check_flash_arguments(self.others, self.position_ids, self.shape[1])


def check_embeds_allowed(model: Any, inputs_embeds: torch.Tensor | None) -> None:
    """ValueError for embeddings where a model has `reads_token_ids`, so that they cannot take the place of ids."""
    if inputs_embeds is not None and model.reads_token_ids:
        raise ValueError(
            f"inputs_embeds cannot take the place of input_ids here: {type(model).__name__} also reads the ids "
            "themselves, in every recurrence. Pass input_ids. (Soft prompts, as of prompt tuning, have none; use LoRA.)"
        )

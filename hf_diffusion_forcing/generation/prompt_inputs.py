"""The prompt of a `generate()` call, its ids or embeddings and its mask, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig

from ..cache import RecurrentDepthCache, absolute_positions
from ..compat import CACHE, mask_length
from ..models.forward_call import check_embeds_allowed, check_embeds_shape
from ..models.positions import agree, check_shape
from ..models.token_types import prompt_block
from .call import Call
from .row import Row


@dataclass(eq=False)
class PromptInputs:
    """The prompts of a call.

    Attributes:
        ids: int64 [batch, length], the ids that the output begins with. They may be fewer than `columns`: only those
            that the cache does not hold yet, or none with `embeds`.
        columns: columns of the whole prompt, including those that the cache holds.
        mask: int64 [batch, columns], or None without padding.
        embeds: [batch, columns, channels], the prompts' embeddings where ids do not give them.
        block: bool [batch, columns], the tokens that see each other in both directions; None if there are none.
    """

    ids: torch.LongTensor
    columns: int
    mask: torch.Tensor | None = None
    embeds: torch.Tensor | None = None
    block: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        model: GenerationMixin,
        ids: torch.LongTensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> PromptInputs:
        """The inputs of the first pass. `prepare_inputs_for_generation` may embed the ids, as for soft prompts."""
        inputs = model.prepare_inputs_for_generation(ids, is_first_iteration=True, **model_kwargs)
        mask, embeds = inputs.get("attention_mask"), inputs.get("inputs_embeds")
        check_embeds_allowed(model, embeds)
        mask = None if mask is None else mask.long()
        columns, cache = columns_of(mask, embeds, generation_config), model_kwargs.get(CACHE)
        seen = cache.columns if cache is not None else 0
        token_types = inputs.get("token_type_ids")
        if seen and token_types is not None and token_types.shape[1] == columns:
            token_types = token_types[:, seen:]
        block = prompt_block(token_types, model.has_bidirectional_prompt, (len(ids), columns), seen)
        return cls(ids, columns, mask, embeds, block)

    def check(self, config: PreTrainedConfig, cache: RecurrentDepthCache | None, max_length: int) -> None:
        """Refuse masks, caches and lengths the model cannot handle; `max_length` counts ids."""
        batch, length = self.ids.shape
        columns = self.columns
        if self.mask is not None:
            self._check_mask(self.mask)
        seen = cache.columns if cache is not None else 0
        if columns <= seen or (self.embeds is None and length not in (columns, columns - seen)):
            raise ValueError(
                f"cache holds {seen} columns; the call covers {columns} and has {length} ids: "
                "pass the whole text, or only the new ids with an attention_mask over the whole text."
            )
        if cache is not None and cache.batch_size not in (-1, batch):
            raise ValueError(
                f"cache has {cache.batch_size} rows, the batch {batch}: pass as many rows, or a new cache."
            )
        limit, longest = config.max_position_embeddings, columns - length + max_length
        if longest > limit:
            remedy = (
                f"Use max_new_tokens <= {limit - columns}."
                if columns < limit
                else f"Shorten it to fewer than {limit} tokens."
            )
            raise ValueError(
                f"A prompt of {columns} tokens, continued to {longest}, exceeds the context of {limit}. {remedy}"
            )

    def rows(self, call: Call, seeds: list[int], seen: int) -> list[Row]:
        """The prompts as rows of a call, with one seed each, which hold the first `seen` columns already."""
        batch, mask = len(self.ids), self.mask
        padding, cached = [0] * batch, [seen] * batch
        if mask is not None:
            padding, cached = (self.columns - mask.sum(-1)).tolist(), mask[:, :seen].sum(-1).tolist()
        shifts = [self.columns - self.ids.shape[1] - pad for pad in padding]
        facts = zip(self.ids.tolist(), shifts, seeds, cached, strict=True)
        rows = [
            Row(call, number, ids, shift, seed, shift + call.stopping.max_length - 2, held)
            for number, (ids, shift, seed, held) in enumerate(facts)
        ]
        if self.block is not None:
            for row, block in zip(rows, self.block.cpu(), strict=True):
                row.block = (block if mask is None else block[mask[row.number].bool().cpu()]).tolist()
        if self.embeds is not None:
            for row, embeds in zip(rows, self.embeds, strict=True):
                row.embeds = embeds if mask is None else embeds[mask[row.number].bool()]
        return rows

    def _check_mask(self, mask: torch.Tensor) -> None:
        if not bool(mask.any(-1).all()):
            raise ValueError("A row of attention_mask is all zeros: its prompt is empty. Pass at least one token.")
        # Soft prompts stand before the padding of the ids: with embeddings only the end must be real.
        padded = (mask[:, -1:] == 0) if self.embeds is not None else (mask.diff(dim=-1) < 0)
        if bool(padded.any()):
            raise ValueError(
                "attention_mask has padding after a real token; prompts must be padded on the left: "
                "set tokenizer.padding_side = 'left'."
            )


def columns_of(mask: torch.Tensor | None, embeds: torch.Tensor | None, generation_config: GenerationConfig) -> int:
    """Columns of a prompt with this mask or these embeddings."""
    if mask is not None:
        return mask.shape[1]
    return mask_length(generation_config) if embeds is None else embeds.shape[1]


def check_embeds(embeds: torch.Tensor, mask: torch.Tensor | None) -> None:
    """ValueError unless the embeddings are [batch, columns, channels] and the mask, if given, is [batch, columns]."""
    check_embeds_shape(embeds)
    if mask is not None and mask.shape != embeds.shape[:2]:
        raise ValueError(
            f"inputs_embeds has shape {tuple(embeds.shape)} and attention_mask {tuple(mask.shape)}: pass a mask of "
            f"shape {tuple(embeds.shape[:2])}."
        )


def check_ids(ids: torch.LongTensor, vocabulary: int) -> None:
    """ValueError for ids outside the vocabulary."""
    if ids.numel() == 0:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"input_ids holds {low if low < 0 else high}, outside the vocabulary of {vocabulary} tokens: "
            "was the text encoded with this model's tokenizer?"
        )


def check_position_ids(position_ids: torch.LongTensor, mask: torch.Tensor | None, shape: tuple[int, int]) -> None:
    """ValueError unless position_ids agree with the mask.

    Args:
        position_ids: of the last columns.
        mask: [batch, columns], or None without padding.
        shape: batch and columns.
    """
    positions, _ = absolute_positions(mask, 0, shape, position_ids.device)
    width = min(position_ids.shape[-1], shape[1])
    check_shape(position_ids, (shape[0], width))
    if not agree(position_ids, positions[:, shape[1] - width :]):
        raise ValueError(
            "position_ids do not agree with attention_mask: generate() counts positions from each row's first real "
            "token. Leave position_ids out."
        )

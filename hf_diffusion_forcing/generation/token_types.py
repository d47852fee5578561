"""`token_type_ids` of a `generate()` call."""

from typing import Any

from transformers import GenerationConfig
from transformers.generation import GenerationMode
from transformers.utils import logging

from ..cache import RecurrentDepthCache
from ..compat import CACHE
from ..models.interface import RecurrentDepthInterface

logger = logging.get_logger(__name__)


def check_token_types(
    model: RecurrentDepthInterface,
    model_kwargs: dict[str, Any],
    generation_config: GenerationConfig,
    mode: GenerationMode,
) -> None:
    """Refuse settings that split a bidirectional prompt. Say once if the model was trained with one and there is none.

    Raises:
        ValueError: a prompt in chunks, or one that drafts are read with.
    """
    if not model.has_bidirectional_prompt:
        return
    token_types, cache = model_kwargs.get("token_type_ids"), model_kwargs.get(CACHE)
    if token_types is None or not bool(token_types.any()):
        if not (isinstance(cache, RecurrentDepthCache) and cache.columns):
            logger.warning_once(
                f"{type(model).__name__} was trained to read a prompt in both directions, but this call has no "
                "token_type_ids, so the prompt is read from left to right. Pass token_type_ids=attention_mask, or 1 "
                "for the tokens of the question and 0 for those after it."
            )
        return
    chunk, width = generation_config.prefill_chunk_size, token_types.shape[1]
    if chunk is not None and chunk < width:
        raise ValueError(
            f"prefill_chunk_size={chunk} would split a prompt of {width} tokens, which token_type_ids marks as "
            "bidirectional: its first tokens see its last ones. Leave prefill_chunk_size out."
        )
    if mode == GenerationMode.ASSISTED_GENERATION:
        raise ValueError(
            "token_type_ids is not possible with assisted generation (assistant_model, prompt_lookup_num_tokens), "
            "which reads drafts together with the prompt: use sampler='speculative_wavefront'."
        )

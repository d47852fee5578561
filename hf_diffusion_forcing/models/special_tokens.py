"""Special-token ids from a checkpoint's own tokenizer."""

from __future__ import annotations

import json
import os
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from .loading import checkpoint_file

logger = logging.get_logger(__name__)

SPECIAL = ("bos_token", "eos_token", "pad_token")


def tokenizer_ids(
    path: str | os.PathLike | None, keywords: dict[str, Any], tokens: tuple[str, ...] = ()
) -> dict[str, int]:
    """Ids of a tokenizer's special tokens, read from tokenizer_config.json and tokenizer.json.

    Args:
        path: folder or Hub id.
        keywords: those of `from_pretrained`.
        tokens: texts of further tokens to look up.

    Returns:
        Ids by name ("eos_token_id", ...) or text, as far as the files have them; empty without a fast tokenizer.
    """
    read = []
    for name in ("tokenizer_config.json", "tokenizer.json"):
        file = None if path is None else checkpoint_file(path, name, keywords)
        if file is None:
            return {}
        with open(file, encoding="utf-8") as opened:
            read.append(json.load(opened))
    config, tokenizer = read
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    # Unigram models have a list of pieces there, but their special tokens are in added_tokens.
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    ids |= {added["content"]: added["id"] for added in tokenizer.get("added_tokens", [])}
    texts = dict(zip(tokens, tokens, strict=True))
    for name in SPECIAL:
        text = config.get(name)
        texts[f"{name}_id"] = text.get("content") if isinstance(text, dict) else text
    return {name: ids[text] for name, text in texts.items() if text in ids}


def correct_token_id(model: PreTrainedModel, name: str, right: int | list[int], path: str | os.PathLike | None) -> None:
    """Set a model's special-token id to the tokenizer's, and warn if the config had another.

    A generation config with an id of its own keeps it.

    Args:
        name: "eos_token_id", ...
        path: the checkpoint, for the warning.
    """
    stale = getattr(model.config, name)
    setattr(model.config, name, right)
    if model.can_generate() and getattr(model.generation_config, name) in (None, stale):
        setattr(model.generation_config, name, right)
    if stale is not None:
        logger.warning(f"{name}={stale} in the config of {path} differs from its tokenizer: using {name}={right}.")

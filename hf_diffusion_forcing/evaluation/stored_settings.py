"""Stores sampler settings in a model's generation config, temporarily or on disk."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import GENERATION_CONFIG_NAME

from ..hub.staging import check_destination, staged
from ..settings.generation_config import SAMPLER_NAMES
from .journal import check_writable


@contextmanager
def stored_sampler(model, settings: dict[str, Any]) -> Iterator[None]:
    """Temporarily replace the sampler settings in a model's generation config."""
    before = model.generation_config
    model.generation_config = copy.copy(before)
    for name in SAMPLER_NAMES:
        setattr(model.generation_config, name, settings.get(name))
    try:
        yield
    finally:
        model.generation_config = before


def is_own_folder(folder: str | os.PathLike, model) -> bool:
    """Whether a folder is the one a model was loaded from."""
    return is_same_folder(folder, model.config.name_or_path)


def is_same_folder(folder: str | os.PathLike, source: str | os.PathLike) -> bool:
    return Path(source).is_dir() and Path(folder).resolve() == Path(source).resolve()


def check_save(folder: str | os.PathLike, source: str | os.PathLike) -> None:
    """Before measuring, refuse a folder in which tuned settings cannot be saved.

    Args:
        source: folder or Hub id of the model.

    Raises:
        ValueError: the folder cannot be written, or holds something other than the model.
    """
    if not is_same_folder(folder, source):
        check_destination(folder)
    check_writable(folder)


def save_with_settings(folder: str | os.PathLike, model, tokenizer, settings: dict[str, Any]) -> None:
    """Save a checkpoint that decodes with these settings by default.

    Args:
        folder: the model's own (only `generation_config.json` is rewritten), or a new one for the whole checkpoint.

    Raises:
        ValueError: the folder holds something else.
    """
    with stored_sampler(model, settings):
        if is_own_folder(folder, model):
            with tempfile.TemporaryDirectory(dir=folder, prefix=".generation_config.") as stage:
                model.generation_config.save_pretrained(stage)
                (Path(stage) / GENERATION_CONFIG_NAME).replace(Path(folder) / GENERATION_CONFIG_NAME)
        else:
            with staged(folder) as stage:
                model.save_pretrained(stage)
                tokenizer.save_pretrained(stage)

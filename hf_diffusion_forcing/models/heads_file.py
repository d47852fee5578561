"""The file of decoding heads beside a model's weights."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files import whole_file
from .decoding_heads import DecodingHeads, ExitRisk, FittedModel
from .loading import checkpoint_file

HEADS_NAME = "decoding_heads.safetensors"
VERSION = 1
"""Of the file's format."""

REMEDY = "Run `hf-diffusion-forcing fit` for this model, or remove the file: it changes only the speed of decoding."


def save_heads(heads: DecodingHeads, path: str | os.PathLike) -> None:
    """Write heads in float16, as a whole or not at all.

    Args:
        path: the file.
    """
    facts = {
        "version": VERSION,
        **asdict(heads.fitted),
        "extra_tokens": heads.extra_tokens,
        "risk": None if heads.risk is None else asdict(heads.risk),
    }
    tensors = {name: tensor.detach().to("cpu", torch.float16).contiguous() for name, tensor in heads.tensors.items()}
    with whole_file(path) as partial:
        # One entry: safetensors writes several in a random order, and equal heads are to be equal files.
        save_file(tensors, partial, {"decoding_heads": json.dumps(facts)})


def load_heads(path: str | os.PathLike, config: Any) -> DecodingHeads:
    """Read heads and check that they fit a model.

    Args:
        path: the file.
        config: of the model.

    Raises:
        ValueError: the file is damaged or of another version, or the heads were fitted to another model.
    """
    try:
        with safe_open(path, "pt") as opened:
            facts = json.loads((opened.metadata() or {})["decoding_heads"])
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118 (not a dict)
        version, facts["risk"] = facts.pop("version"), facts["risk"] and ExitRisk(**facts["risk"])
        fitted = FittedModel(**{each.name: facts.pop(each.name) for each in fields(FittedModel)})
        if type(facts["extra_tokens"]) is not int:
            raise TypeError(f"extra_tokens={facts['extra_tokens']!r}")
        heads = DecodingHeads(fitted, tensors, **facts) if version == VERSION else None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as decoding heads ({error!r}). {REMEDY}") from error
    if heads is None:
        raise ValueError(f"{path} has version {version} of decoding heads; this package reads {VERSION}. {REMEDY}")
    _check_fit(path, heads, FittedModel.of(config))
    return heads


def _check_fit(path: str | os.PathLike, heads: DecodingHeads, expected: FittedModel) -> None:
    found = asdict(heads.fitted)
    different = [
        f"{name}={found[name]!r} (the model has {want!r})"
        for name, want in asdict(expected).items()
        if found[name] != want
    ]
    if different:
        raise ValueError(f"{path} was fitted to another model: {', '.join(different)}. {REMEDY}")
    shapes, own = _shapes(heads), {name: tuple(tensor.shape) for name, tensor in heads.tensors.items()}
    if wrong := sorted(name for name in {*shapes, *own} if own.get(name) != shapes.get(name)):
        raise ValueError(f"{path} has tensors that are missing, unknown or misshapen: {', '.join(wrong)}. {REMEDY}")


def _shapes(heads: DecodingHeads) -> dict[str, tuple[int, ...]]:
    """The tensors that go with the maps to low ranks. A state may be several times as wide as an embedding."""
    size = heads.fitted.hidden_size
    # No shape: what has to be there and is not.
    shapes: dict[str, tuple[int, ...]] = {"extra.down": ()} if heads.extra_tokens else {}
    for name, tensor in heads.tensors.items():
        part, _, role = name.rpartition(".")
        if role != "down" or tensor.ndim != 2:
            continue
        rank, inputs = tensor.shape
        if part == "extra":
            shapes |= {name: (rank, 2 * size), "extra.up": (size, rank), "extra.scale": (size,)}
        elif part == "probe" and inputs % (2 * size) == 0:
            vectors = {"probe.bias": rank, "probe.out": rank, "probe.change": 1, "probe.offset": 1}
            shapes |= {name: (rank, inputs)} | {each: (length,) for each, length in vectors.items()}
        elif part == "start" and inputs > size and inputs % size == 0:
            channels = inputs - size
            shapes |= {name: (rank, inputs), "start.up": (channels, rank), "start.mean": (channels,)}
        elif part.removeprefix("readout.").isdecimal() and inputs % size == 0:
            shapes |= {name: (rank, inputs), f"{part}.up": (inputs, rank)}
    return shapes


class KeepsHeads:
    """`from_pretrained` and `save_pretrained` with a model's decoding heads, where there are some."""

    decoding_heads: DecodingHeads | None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, decoding_heads: bool = True, **kwargs):
        """transformers' own, with the decoding heads.

        Args:
            decoding_heads: whether to load them.

        Raises:
            ValueError: the heads' file is damaged, or they were fitted to another model.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        path = pretrained_model_name_or_path
        file = checkpoint_file(path, HEADS_NAME, kwargs) if decoding_heads and path is not None else None
        if file is not None:
            model.decoding_heads = load_heads(file, model.config)
        return loaded

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs) -> None:
        """transformers' own, with the decoding heads."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process and self.decoding_heads is not None:
            save_heads(self.decoding_heads, Path(save_directory) / HEADS_NAME)

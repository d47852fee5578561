"""Weights that were published as a pickle alone: read by torch's `weights_only` loader, which executes nothing."""

from __future__ import annotations

import os
import pickle
import zipfile
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.utils import (
    GENERATION_CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    logging,
)

from .loading import HUB_KEYWORDS, checkpoint_file, tensor_names

logger = logging.get_logger(__name__)

PICKLED = (WEIGHTS_NAME, "model.pt")
"""Names of such files."""


def pickled_file(path: str | os.PathLike | None, keywords: dict[str, Any]) -> str | None:
    """The pickle that holds a checkpoint's weights; None if there are safetensors, or no such file.

    Args:
        path: folder or Hub id.
        keywords: those of `from_pretrained`.

    Raises:
        ValueError: there is one, and `weights_only=False` asks to execute it.
    """
    if path is None or any(keywords.get(name) is not None for name in ("state_dict", "gguf_file", "variant")):
        return None
    if any(checkpoint_file(path, name, keywords) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        return None
    found = next(filter(None, (checkpoint_file(path, name, keywords) for name in PICKLED)), None)
    if found is not None and keywords.get("weights_only") is False:
        raise ValueError(
            f"weights_only=False would execute what {found} says. Leave it out: tensors load without, and nothing else "
            "is needed."
        )
    return found


def read_pickled(file: str | os.PathLike) -> dict[str, torch.Tensor]:
    """The tensors of a pickle, on the CPU. Warns how to convert it.

    Raises:
        ValueError: it holds anything but tensors under their names, or is no such file. Nothing has been executed.
    """
    remedy = "Nothing was executed. Ask the publisher for safetensors, or for a file of tensors alone."
    try:
        # A file that is mapped into memory is read when its tensors are.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file} cannot be loaded safely: {reason_of(error)}. {remedy}") from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{file} is damaged or no file of torch.save(): {error}. Get it again.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        found = sorted(map(str, tensors))[:6] if isinstance(tensors, dict) else type(tensors).__name__
        raise ValueError(f"{file} holds {found} instead of tensors under their names. {remedy}")
    logger.warning(
        f"{file} is a pickle, read by torch's weights_only loader. Convert it to safetensors once: by "
        "scripts/convert_checkpoint.py in this package's repository, or by `hf-diffusion-forcing convert`."
    )
    return tensors


def reason_of(error: pickle.UnpicklingError) -> str:
    """What torch's loader refuses, of a message that also recommends to execute it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    says = [line for line in lines if not line.startswith(("Weights only load failed", "Check the documentation", "("))]
    reason = says[0] if says else "it is no pickle of tensors"
    return reason.removeprefix("WeightsUnpickler error: ").partition(" Please use")[0].rstrip(".")


class PickledLoading:
    """`from_pretrained` also for weights that were published as a pickle alone. Put it before `CheckedLoading` in the
    bases."""

    @classmethod
    def check_names(cls, names: set[str], config: PreTrainedConfig) -> None:
        """A hook for a family's check of a checkpoint's tensor names, before anything is loaded.

        Raises:
            ValueError: they do not fit the config.
        """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """transformers' own `from_pretrained`, also for weights that were published as a pickle alone.

        Such a file is read by torch's `weights_only` loader, which executes nothing.

        Raises:
            ValueError: tensors do not fit the config, or a pickle holds anything but tensors.
        """
        path = pretrained_model_name_or_path
        file, where = pickled_file(path, kwargs), {key: kwargs[key] for key in HUB_KEYWORDS if key in kwargs}
        if file is not None:
            return cls._from_pickle(path, file, config, where, kwargs)
        names = None if kwargs.get("output_loading_info") else tensor_names(path, kwargs)
        if names is not None and path is not None:
            made = isinstance(config, PreTrainedConfig)
            cls.check_names(names, config if made else cls.config_class.from_pretrained(config or path, **where))
        return super().from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _from_pickle(cls, path, file: str, config, where: dict[str, Any], keywords: dict[str, Any]):
        tensors = read_pickled(file)
        keywords = {name: value for name, value in keywords.items() if name not in (*where, "weights_only")}
        if not isinstance(config, PreTrainedConfig):
            config, keywords = cls.config_class.from_pretrained(
                config or path, return_unused_kwargs=True, **where, **keywords
            )
        if not keywords.get("output_loading_info"):
            cls.check_names(set(tensors), config)
        loaded = super().from_pretrained(None, config=config, state_dict=tensors, **keywords)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.name_or_path = model.config.name_or_path = str(path)
        if model.can_generate() and checkpoint_file(path, GENERATION_CONFIG_NAME, where) is not None:
            model.generation_config = model.generation_config_class.from_pretrained(path, **where)
        return loaded

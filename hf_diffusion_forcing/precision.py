"""Which precisions are fast on a device, and a warning for a model in a slow one."""

import torch
from transformers.utils import logging

from .compat import has_matrix_instructions

logger = logging.get_logger(__name__)


def is_slow(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether passes over many positions are several times slower in a dtype than in float32 on a device.

    That is so for bfloat16 and float16 on CPUs whose instructions oneDNN cannot use for them, such as x86 processors
    without AVX-512: torch then multiplies without a fast kernel.
    """
    return torch.device(device).type == "cpu" and dtype.itemsize < 4 and not has_matrix_instructions(dtype)


def warn_if_slow(model: torch.nn.Module) -> None:
    """Say once that a model's precision is slow on its device, and what to do."""
    if is_slow(model.dtype, model.device):
        name = str(model.dtype).removeprefix("torch.")
        logger.warning_once(
            f"This CPU has no fast {name} instructions: passes over many positions take several times as long in "
            f"{name} as in float32. Load the model with dtype=torch.float32, which takes twice the memory."
        )

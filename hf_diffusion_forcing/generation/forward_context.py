"""Autocast and hooks around `forward()`, for samplers, which call the model's parts instead."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from ..compat import has_hooks_of_its_own

logger = logging.get_logger(__name__)


def autocast_of_forward(model: PreTrainedModel, device: torch.device) -> AbstractContextManager:
    """The autocast state inside a wrapped `model.forward`, as a context; nothing if it is not wrapped.

    `Accelerator.prepare` replaces the model's forward by one that runs under autocast. A callback reads the autocast
    state in a pass of one token and one recurrence.

    Args:
        device: device of the ids.
    """
    if "forward" not in vars(model):
        return nullcontext()
    seen: list[AbstractContextManager] = []

    def look(states: torch.Tensor, before: torch.Tensor) -> None:
        kind = states.device.type
        settings = torch.is_autocast_enabled(kind), torch.is_autocast_cache_enabled()
        seen.append(torch.autocast(kind, torch.get_autocast_dtype(kind), *settings))

    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    # A compiled forward() need not be compiled for this; seeds are given, so that nothing is drawn.
    with torch.compiler.set_stance("force_eager"), torch.no_grad():
        model.forward(ids, num_steps=1, use_cache=False, seeds=ids[0], on_recurrence=look)
    return seen[0]


def warn_about_hooks(model: PreTrainedModel, sampler: str) -> None:
    """Warn once that hooks on the model itself do not run, because samplers call only its parts."""
    if has_hooks_of_its_own(model):
        logger.warning_once(
            f"The model has a forward hook, which sampler={sampler!r} does not run: it calls the model's parts, not "
            "forward(). Register the hook on a module inside the model, or use sampler='autoregressive'."
        )

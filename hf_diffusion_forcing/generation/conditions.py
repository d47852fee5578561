"""What decides how long a model's passes take: the machine, and the shapes of the model."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from ..compat import attn_implementation
from ..models.interface import RecurrentDepthInterface
from ..packing import packed_dtypes
from ..version import __version__

CPU_FIELDS = ("model name", "cpu family", "model", "CPU implementer", "CPU part")
"""Lines of /proc/cpuinfo that name a processor; which of them exist depends on the architecture."""


def conditions_of(model: RecurrentDepthInterface, batch: int, device: torch.device) -> dict[str, Any]:
    """Everything that a cost curve is measured under, as JSON values.

    Args:
        model: its modules, and their parameters' shapes, count.
        batch: rows of the wave.
        device: device of the ids.
    """
    # A wrapper made for one call gives the modules of the model that it wraps.
    network = next(iter(model.modules()))
    on = device.type
    return {
        "processor": processor_name(),
        "device": str(device) if on == "cpu" else f"{device}: {_accelerator_name(device)}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hf_diffusion_forcing": __version__,
        "dtype": str(model.dtype),
        "autocast": str(torch.get_autocast_dtype(on)) if torch.is_autocast_enabled(on) else None,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "attention": attn_implementation(network.config),
        "model": type(network).__name__,
        "shapes": shapes_of(network),
        "batch": batch,
        "packed": packed_dtypes(network),
    }


@cache
def processor_name() -> str:
    """The processor's name and the instructions that torch uses on it."""
    names: list[str] = []
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    for field in CPU_FIELDS:
        values = (value for name, _, value in (line.partition(":") for line in lines) if name.strip() == field)
        names += [f"{field} {value.strip()}" for value in values][:1]
    named = ", ".join(names) or platform.processor() or "unknown"
    return f"{platform.machine()}, {named}, {torch.backends.cpu.get_cpu_capability()}"


def shapes_of(network: torch.nn.Module) -> str:
    """A digest of the network's modules, of their parameters' shapes, dtypes and devices, and of its heads."""
    config = network.config
    heads = [getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")]
    facts: list[Any] = [heads]
    facts += [(name, type(module).__name__) for name, module in network.named_modules()]
    facts += [
        (name, tuple(each.shape), str(each.dtype), str(each.device), type(each).__name__)
        for name, each in network.named_parameters()
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _accelerator_name(device: torch.device) -> str:
    """The name of an accelerator, if its backend reports one."""
    backend = getattr(torch, device.type, None)
    return backend.get_device_name(device) if hasattr(backend, "get_device_name") else device.type

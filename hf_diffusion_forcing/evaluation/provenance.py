"""The provenance of a measurement: model, machine and versions."""

from __future__ import annotations

import hashlib
import platform
from typing import Any

import torch
import transformers
from torch.distributed.tensor import DTensor

from ..version import __version__


def describe_model(model) -> dict[str, Any]:
    """A model's identity as JSON values: its name, form, and a hash of the first weights of each tensor.

    Further training in the same folder changes it.
    """
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        if isinstance(weights, DTensor):
            weights = weights.full_tensor()  # its processes must agree on what the model is
        few = [] if weights.device.type == "meta" else weights.detach().flatten()[:16].float().tolist()
        digest.update(repr((name, tuple(weights.shape), few)).encode())
    return {
        "name": model.config.name_or_path,
        "type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": digest.hexdigest()[:16],
    }


def describe_machine(model) -> str:
    """Processor, device and threads."""
    return describe_device(model.device)


def describe_device(device: torch.device) -> str:
    """Processor, device and threads."""
    accelerator = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{platform.machine()}, {device.type}{accelerator}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Versions of the packages that decode."""
    return {
        "hf_diffusion_forcing": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def provenance(settings: dict[str, Any]) -> str:
    """One line on the machine, versions and date of a measurement."""
    known = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    return f"{settings['machine']}; {known}; {settings['date']}"

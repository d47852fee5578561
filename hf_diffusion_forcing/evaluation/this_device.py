"""Measures the machine itself as a `Device`."""

from __future__ import annotations

import psutil
import torch
from torch import nn

from ..precision import is_slow
from .devices import THIS, Device
from .provenance import describe_device
from .timing import linear_seconds

LAYERS, WIDTH = 8, 4096
"""Linear layers that are timed: half a GB in float32, more than the caches of processors."""

MANY = {"cpu": 128}
"""Positions at which arithmetic is measured, by type of device: reading the weights takes far less time then."""

MANY_ELSEWHERE = 4096
"""The same on accelerators."""

REPEATS = 3


@torch.no_grad()
def this_device() -> Device:
    """Measure this machine: its accelerator if it has one, otherwise its processor. Takes seconds.

    Bandwidth is that of linear layers at one position; arithmetic is that of the same layers at many. The precision is
    bfloat16, or float32 on a processor that is slow in bfloat16.
    """
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    dtype = torch.float32 if is_slow(torch.bfloat16, device) else torch.bfloat16
    layers = [nn.Linear(WIDTH, WIDTH, bias=False, device=device, dtype=dtype) for _ in range(LAYERS)]
    weights, many = sum(layer.weight.numel() for layer in layers), MANY.get(device.type, MANY_ELSEWHERE)
    memory = psutil.virtual_memory().total
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    return Device(
        THIS,
        describe_device(device),
        bandwidth=weights * dtype.itemsize / linear_seconds(layers, 1, REPEATS),
        arithmetic=2 * weights * many / linear_seconds(layers, many, REPEATS),
        memory=memory,
        link=None,
        precision=str(dtype).removeprefix("torch."),
        source=f"measured on {LAYERS} linear layers of {WIDTH} x {WIDTH}, at 1 and at {many} positions",
    )

"""Devices by the numbers of their data sheets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..settings.validation import nearest

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Device:
    """What limits a device.

    Attributes:
        name: by which the command knows it.
        title: the maker's name of it.
        bandwidth: bytes per second that it reads from its memory.
        arithmetic: operations (additions and multiplications) per second of dense matrix products in `precision`.
        memory: bytes.
        link: bytes per second that it sends to other devices of its kind, in one direction; None if it has no such
            link.
        precision: of weights, keys, values and products.
        source: where the numbers come from.
    """

    name: str
    title: str
    bandwidth: float
    arithmetic: float
    memory: float
    link: float | None
    precision: str
    source: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number in `precision`."""
        return getattr(torch, self.precision).itemsize

    @property
    def balance(self) -> float:
        """I of docs/theory.md: positions that it computes in the time in which it reads a layer's weights."""
        return self.arithmetic * self.itemsize / (2 * self.bandwidth)


PUBLISHED = (
    Device(
        "h100",
        "NVIDIA H100 SXM",
        bandwidth=3350 * GIGA,
        arithmetic=989.4 * TERA,
        memory=80 * GIGA,
        link=450 * GIGA,
        precision="bfloat16",
        source="NVIDIA H100 Tensor Core GPU data sheet: 3.35 TB/s; 1,979 TFLOPS with sparsity, half of it dense; "
        "NVLink 900 GB/s, half of it in each direction",
    ),
    Device(
        "a100",
        "NVIDIA A100 80GB SXM",
        bandwidth=2039 * GIGA,
        arithmetic=312 * TERA,
        memory=80 * GIGA,
        link=300 * GIGA,
        precision="bfloat16",
        source="NVIDIA A100 Tensor Core GPU data sheet: 2,039 GB/s; 312 TFLOPS dense; NVLink 600 GB/s, half of it in "
        "each direction",
    ),
    Device(
        "l4",
        "NVIDIA L4",
        bandwidth=300 * GIGA,
        arithmetic=121 * TERA,
        memory=24 * GIGA,
        link=32 * GIGA,
        precision="bfloat16",
        source="NVIDIA L4 Tensor Core GPU data sheet: 300 GB/s; 242 TFLOPS with sparsity, half of it dense; "
        "PCIe Gen4 x16 64 GB/s, half of it in each direction",
    ),
    Device(
        "rtx4090",
        "NVIDIA GeForce RTX 4090",
        bandwidth=1008 * GIGA,
        arithmetic=165.2 * TERA,
        memory=24 * GIGA,
        link=None,
        precision="bfloat16",
        source="NVIDIA Ada GPU architecture white paper: 1,008 GB/s; 165.2 TFLOPS dense, BF16 with FP32 accumulation; "
        "no NVLink",
    ),
    Device(
        "m4-max",
        "Apple M4 Max, 40 GPU cores",
        bandwidth=546 * GIGA,
        arithmetic=17.2 * TERA,
        memory=128 * GIGA,
        link=None,
        precision="bfloat16",
        source="Apple's technical specifications: 546 GB/s. Apple publishes no arithmetic: 40 cores x 128 lanes x 2 "
        "operations x 1.678 GHz, the clock by hmc-tech.com, which lists FP16 at the speed of FP32",
    ),
)
"""Published devices; arithmetic is dense, not sparse."""

DEVICES = {device.name: device for device in PUBLISHED}

THIS = "this"
"""The name of the machine that the command runs on, which `this_device` measures."""


def published_device(name: str) -> Device:
    """A published device by name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in DEVICES:
        raise ValueError(f"device={name!r} is unknown{nearest(name, [*DEVICES, THIS])}.")
    return DEVICES[name]

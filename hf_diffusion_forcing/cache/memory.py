"""Memory for keys and values."""

import numpy as np
import torch

ALIGNED = 64
"""Bytes; torch's own tensors begin at multiples of it."""


def zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """A tensor of zeros with the dtype and device of another one.

    On a CPU, the system gives a page of memory to it only when the page is first written. `torch.zeros` writes them
    all, which takes seconds for the cache of a server: most of it is room for positions that may never come.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return like.new_zeros(shape)
    count = torch.Size(shape).numel() * like.element_size()
    memory = np.zeros(count + ALIGNED, dtype=np.uint8)
    begin = -memory.ctypes.data % ALIGNED
    return torch.from_numpy(memory[begin : begin + count]).view(like.dtype).view(shape)

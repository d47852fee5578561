"""Memory for keys and values."""

import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import torch

ADDRESSES = 8
"""On Linux, a tensor has addresses for this many times the seats and the places that it was made with."""

ALIGNED = 64
"""Bytes; torch's own tensors begin at multiples of it."""

SMALL = 2**20
"""Bytes of a tensor below which copying it costs less than taking memory page by page."""

NEVER_OVERCOMMIT = "2"
"""The mode of Linux in which all addresses count as memory."""

NO_RESERVE = 0x4000
"""MAP_NORESERVE of Linux: addresses may be more than there is memory. Python names it from 3.13 on."""


def zeros(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros [slots, seats, heads, places, head_dim] with the dtype and device of another tensor.

    On a CPU, the system gives a page of memory to it only when the page is first written. `torch.zeros` writes them
    all, which takes seconds for the cache of a server: most of it is room for positions that may never come. On Linux
    it also has addresses for what it may grow to, so that `resized` need not copy.
    """
    size = torch.Size(shape).numel() * like.element_size()
    if like.device.type != "cpu" or size < SMALL or torch.compiler.is_compiling():
        return like.new_zeros(shape)
    if _has_addresses():
        slots, seats, heads, places, head_dim = shape
        room = slots, seats * ADDRESSES, heads, places * ADDRESSES, head_dim
        with suppress(OSError, OverflowError, ValueError):  # the process may have no more of them
            return _addresses(room, like)[:, :seats, :, :places]
    memory = np.zeros(size + ALIGNED, np.uint8)
    begin = -memory.ctypes.data % ALIGNED
    return torch.from_numpy(memory[begin : -ALIGNED + begin]).view(like.dtype).view(shape)


def _addresses(shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
    """Zeros that take memory page by page as they are written.

    Raises:
        OSError, OverflowError, ValueError: there are not enough addresses.
    """
    memory = mmap.mmap(
        -1, torch.Size(shape).numel() * like.element_size(), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    )
    with suppress(OSError):  # a kernel without huge pages
        # A huge page would span several heads and take memory for places that were never written.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.from_numpy(np.frombuffer(memory, np.uint8)).view(like.dtype).view(shape)


@cache
def _has_addresses() -> bool:
    """Whether addresses cost nothing: Linux, unless the process or the whole system has a limit on them."""
    if not sys.platform.startswith("linux"):
        return False
    import resource  # only Unix has it

    with suppress(OSError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == NEVER_OVERCOMMIT:
            return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def resized(old: torch.Tensor, slots: int, seats: int, places: int, filled: Sequence[int]) -> torch.Tensor:
    """A tensor with so many slots, seats and places, and what the old one holds; finite everywhere else.

    Copies nothing if there are addresses behind the old one, which then shares the memory.

    Args:
        old: [slots, seats, heads, places, head_dim]. Its last place holds padding.
        filled: of each seat of the old one, all places written so far are below this.
    """
    if slots > old.shape[0] or not _reaches(old, seats, places):
        return copied(old, slots, seats, places, range(old.shape[1]), filled)
    padding = old[:, :, :, -1]
    if places > old.shape[3] and not padding.isfinite().all():
        padding.nan_to_num_(0.0, 0.0, 0.0)  # 0 * NaN would spread through a mask
    return old.as_strided((slots, seats, old.shape[2], places, old.shape[4]), old.stride())


def copied(
    old: torch.Tensor, slots: int, seats: int, places: int, origins: Sequence[int], filled: Sequence[int]
) -> torch.Tensor:
    """A new tensor whose first seats are copies of the seats `origins`; arguments as in `resized`."""
    new = zeros((slots, seats, old.shape[2], places, old.shape[4]), old)
    for seat, origin in enumerate(origins):
        length = filled[origin]
        new[: old.shape[0], seat, :, :length] = old[:, origin, :, :length]
    return new


def _reaches(stored: torch.Tensor, seats: int, places: int) -> bool:
    """Whether a tensor has addresses of its own for so many seats and places."""
    slots, _, heads, _, _ = stored.shape
    of_slot, of_seat, of_head, of_place, _ = stored.stride()
    is_apart = places * of_place <= of_head and heads * of_head <= of_seat and seats * of_seat <= of_slot
    numbers = stored.untyped_storage().nbytes() // stored.itemsize
    return is_apart and stored.storage_offset() + slots * of_slot <= numbers

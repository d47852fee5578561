"""What the machine can afford: positions of a pass, and bytes of keys and values."""

from __future__ import annotations

from itertools import accumulate

import psutil
import torch

from ..cache import RecurrentDepthCache
from ..generation.cost_curve import CostCurve, cost_curve
from ..models.interface import RecurrentDepthInterface

WIDTHS = tuple(2**power for power in range(6, 13))
"""Widths of a pass to choose from. Where even the first costs as much a position as narrower ones do, rows that share
it are no faster than one by one, but no slower either."""

NEAR = 1.1
"""A width is wide enough if a position costs at most this many times what it costs at the best width."""

SHARE = 0.5
"""The share of free memory that keys and values may take."""


def affordable_positions(curve: CostCurve) -> int:
    """The narrowest pass at which a position is nearly as cheap as it gets: wider ones only make rows wait.

    Widths past the measured ones are extrapolated.
    """
    core = [curve.seconds_per_tick(width, 2) - curve.seconds_per_tick(width, 1) for width in WIDTHS]
    # A wider pass never costs less, whatever the measurements say.
    costs = [seconds / width for seconds, width in zip(accumulate(core, max), WIDTHS, strict=True)]
    return next(width for width, cost in zip(WIDTHS, costs, strict=True) if cost <= NEAR * min(costs))


def positions_of(model: RecurrentDepthInterface, device: torch.device) -> int:
    """`max_batch_tokens="auto"`, by the curve of `wavefront="auto"`.

    The curve is measured once for a model on a machine, then kept.
    """
    return affordable_positions(cost_curve(model, 1, device))


def free_cache_bytes(device: torch.device) -> int:
    """`max_cache_bytes="auto"`: half of the memory that is free."""
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    return int(SHARE * psutil.virtual_memory().available)


@torch.no_grad()
def entry_bytes(model: RecurrentDepthInterface, device: torch.device) -> list[int]:
    """Bytes of one entry, the keys and values of one position, in each layer; measured in a pass of one position."""
    cache = model.new_cache(1, "last")
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    at = cache.place(ids, start=0)
    e = model.embed(ids, at)
    model.decode(model.recur(model.initialize_state(e, ids, ids[0]), e, at, 0), at)
    layers = zip(cache.keys, cache.values, strict=True)
    return [keys[0, 0, :, 0].nbytes + values[0, 0, :, 0].nbytes for keys, values in layers]


def bytes_per_position(entries: list[int], cache: RecurrentDepthCache, readouts: int) -> int:
    """Bytes of all entries of one position of one row.

    Args:
        entries: see `entry_bytes`.
        cache: says how many entries each layer has.
        readouts: entries of a coda layer.
    """
    coda = cache.num_prelude_layers + cache.num_core_layers
    return sum(entry * (readouts if layer >= coda else cache.slots(layer)) for layer, entry in enumerate(entries))

"""Measures what a tick costs on this machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from threading import Lock
from weakref import WeakKeyDictionary

import torch

from ..models.interface import RecurrentDepthInterface
from ..packing import PackedLinear

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 5


@dataclass(frozen=True)
class CostCurve:
    """Seconds at widths 1, 2, 4, ..., 64.

    Attributes:
        core: seconds of one core pass.
        ends: seconds of prelude, coda and head together.
    """

    core: tuple[float, ...]
    ends: tuple[float, ...]

    def seconds_per_tick(self, width: float, inner_recurrence: int, ends: float | None = None) -> float:
        """Seconds of a tick over `width` positions, of which prelude and coda process `ends` (all when None).

        Interpolates between the measured widths and extrapolates past the last.
        """
        return _at(self.ends, width if ends is None else ends) + inner_recurrence * _at(self.core, width)


def _at(costs: tuple[float, ...], width: float) -> float:
    last = len(WIDTHS) - 2
    left = min(last, next((i for i in range(last) if width <= WIDTHS[i + 1]), last))
    share = (width - WIDTHS[left]) / (WIDTHS[left + 1] - WIDTHS[left])
    return (1 - share) * costs[left] + share * costs[left + 1]


_MEASURED: WeakKeyDictionary[torch.nn.Module, dict[tuple, CostCurve]] = WeakKeyDictionary()
_MEASURING = Lock()
"""Threads that measure at the same time would disturb each other."""


@torch.no_grad()
def cost_curve(model: RecurrentDepthInterface, batch: int, device: torch.device) -> CostCurve:
    """The model's cost curve on this machine; measured once per batch size, dtype, device, thread count and packing.

    Takes about 2 x 7 x 6 passes of the core and of the other layers.

    Args:
        batch: rows of the wave.
        device: device of the ids; offloaded weights are moved to it.
    """
    ids = torch.zeros(batch, max(WIDTHS), dtype=torch.int64, device=device)
    packed = any(isinstance(module, PackedLinear) for module in model.modules())
    # A wrapper made for one call gives the modules of the model that it wraps.
    network = next(iter(model.modules()))
    key = (batch, model.dtype, device, torch.get_num_threads(), packed)
    with _MEASURING:
        curves = _MEASURED.setdefault(network, {})
        if key not in curves:
            curves[key] = _measure(model, ids)
        return curves[key]


def _measure(model: RecurrentDepthInterface, ids: torch.Tensor) -> CostCurve:
    core, ends = [], []
    cache = model.new_cache(1, "last", max(WIDTHS) + 1)
    for width in WIDTHS:
        positions = torch.arange(width, device=ids.device).expand(len(ids), width)
        at = cache.place(positions, start=0)
        e = model.embed(ids[:, :width], at)
        state = model.initialize_state(e, positions, ids[:, 0])
        core.append(_seconds(lambda: model.recur(state, e, at, 0), ids.device))  # noqa: B023
        decode = _seconds(lambda: model.decode(state, at), ids.device)  # noqa: B023
        embed = _seconds(lambda: model.embed(ids[:, :width], at), ids.device)  # noqa: B023
        ends.append(embed + decode)
    return CostCurve(tuple(core), tuple(ends))


def _seconds(work, device: torch.device) -> float:
    """Median time of a call, after one warm-up call."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])

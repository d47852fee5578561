"""Measures what a tick costs on this machine."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from ..cache import RecurrentDepthCache
from ..models.interface import RecurrentDepthInterface
from . import kept_curves
from .conditions import conditions_of

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
WARM_UP, ROUNDS = 1, 6
"""Ticks at each width that are not counted, and those that are."""


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
    seconds = (1 - share) * costs[left] + share * costs[left + 1]
    # When rows have ended, a row's share of the width is below 1, where a steep curve would extrapolate below zero.
    return max(seconds, width * costs[0]) if width < WIDTHS[0] else seconds


_KNOWN: dict[Path, CostCurve] = {}
"""The curves of this process, by the file that keeps them."""
_MEASURING = Lock()
"""Threads that measure at the same time would disturb each other."""


@torch.no_grad()
def cost_curve(model: RecurrentDepthInterface, batch: int, device: torch.device) -> CostCurve:
    """The model's cost curve on this machine.

    Returns the curve kept for these conditions (`conditions_of`, `kept_curves`); measures and keeps it if there is
    none. Measuring takes `WARM_UP` + `ROUNDS` ticks of one core pass at each width.

    Args:
        batch: rows of the wave.
        device: device of the ids; offloaded weights are moved to it.
    """
    conditions = conditions_of(model, batch, device)
    path = kept_curves.path_of(conditions)
    with _MEASURING:
        if path not in _KNOWN:
            costs = _kept(conditions) or _measured_alone(model, batch, device, conditions)
            _KNOWN[path] = CostCurve(**costs)
        return _KNOWN[path]


def _kept(conditions: dict[str, Any]) -> kept_curves.Curves | None:
    return kept_curves.read(conditions, ("core", "ends"), len(WIDTHS))


def _measured_alone(
    model: RecurrentDepthInterface, batch: int, device: torch.device, conditions: dict[str, Any]
) -> kept_curves.Curves:
    """Measure and keep a curve, unless another process did so while this one waited for it."""
    # The ranks of a tensor-parallel model compute each pass together: none of them may wait for another.
    is_split = getattr(next(iter(model.modules())), "tp_size", None)
    with nullcontext() if is_split else kept_curves.one_process_at_a_time(conditions):
        costs = None if is_split else _kept(conditions)
        if costs is None:
            costs = _measure(model, torch.zeros(batch, max(WIDTHS), dtype=torch.int64, device=device))
            kept_curves.write(conditions, costs)
        return costs


def _measure(model: RecurrentDepthInterface, ids: torch.Tensor) -> kept_curves.Curves:
    """The least seconds of each part of a tick, by width.

    A tick runs in its own order, so that each part finds in the processor's caches what it finds there in decoding.
    Widths take turns, because other programs may slow the machine down for a while. They can only add time, so the
    least counts.
    """
    cache = model.new_cache(1, "last", max(WIDTHS) + 1)
    times: list[list[tuple[float, float]]] = [[] for _ in WIDTHS]
    for _ in range(WARM_UP + ROUNDS):
        for width, measured in zip(WIDTHS, times, strict=True):
            measured.append(_tick_seconds(model, cache, ids[:, :width]))
    least = [tuple(map(min, zip(*measured[WARM_UP:], strict=True))) for measured in times]
    core, ends = zip(*least, strict=True)
    return {"core": core, "ends": ends}


def _tick_seconds(model: RecurrentDepthInterface, cache: RecurrentDepthCache, ids: torch.Tensor) -> tuple[float, float]:
    """Seconds of the core pass of a tick over ids [batch, width], and of its other layers."""
    positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    at = cache.place(positions, start=0)
    begin = _now(ids.device)
    e = model.embed(ids, at)
    embedded = _now(ids.device)
    state = model.initialize_state(e, positions, ids[:, 0])
    started = _now(ids.device)
    state = model.recur(state, e, at, 0)
    refined = _now(ids.device)
    model.decode(state, at)
    return refined - started, _now(ids.device) - refined + embedded - begin


def _now(device: torch.device) -> float:
    """The time at which the device has done all it was asked for."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()

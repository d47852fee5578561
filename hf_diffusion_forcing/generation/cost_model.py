"""What a tick costs on this machine, measured, and the wavefront and inner recurrence that follow from it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from threading import Lock
from weakref import WeakKeyDictionary

import torch

from ..cache.recurrent_depth_cache import RecurrentDepthCache
from ..hooks.latent_criteria import latent_difference
from ..models.interface import RecurrentDepthInterface
from ..packing import PackedLinear

WIDTHS = (1, 2, 4, 8, 16, 32, 64)
INNER_RECURRENCES = (1, 2, 4, 8)
REPEATS = 5
WAVEFRONTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class CostCurve:
    """Seconds at widths 1, 2, 4, ..., 64.

    Attributes:
        core: of one core pass.
        ends: of prelude, coda and head together.
    """

    core: tuple[float, ...]
    ends: tuple[float, ...]

    def seconds_per_tick(self, width: float, inner_recurrence: int, ends: float | None = None) -> float:
        """A tick over `width` positions, of which prelude and coda see `ends` (all when None).

        Interpolated between the measured widths and continued beyond the last.
        """
        return _at(self.ends, width if ends is None else ends) + inner_recurrence * _at(self.core, width)


def _at(costs: tuple[float, ...], width: float) -> float:
    last = len(WIDTHS) - 2
    left = min(last, next((i for i in range(last) if width <= WIDTHS[i + 1]), last))
    share = (width - WIDTHS[left]) / (WIDTHS[left + 1] - WIDTHS[left])
    return (1 - share) * costs[left] + share * costs[left + 1]


_MEASURED: WeakKeyDictionary[torch.nn.Module, dict[tuple, CostCurve]] = WeakKeyDictionary()
_MEASURING = Lock()
"""Threads that time at once would time each other."""


@torch.no_grad()
def cost_curve(model: RecurrentDepthInterface, batch: int, device: torch.device) -> CostCurve:
    """The model's cost curve on this machine; measured once a batch size, dtype, device, thread count and packing.

    Takes about 2 x 7 x 6 passes of the core and of the other layers.

    Args:
        batch: rows of the wave.
        device: of the ids; offloaded weights are brought to it.
    """
    ids = torch.zeros(batch, max(WIDTHS), dtype=torch.int64, device=device)
    packed = any(isinstance(module, PackedLinear) for module in model.modules())
    key = (batch, model.dtype, device, torch.get_num_threads(), packed)
    with _MEASURING:
        curves = _MEASURED.setdefault(model, {})
        if key not in curves:
            curves[key] = _measure(model, ids)
        return curves[key]


def _measure(model: RecurrentDepthInterface, ids: torch.Tensor) -> CostCurve:
    core, ends = [], []
    cache = model.new_cache(1, "last", max(WIDTHS) + 1)
    for width in WIDTHS:
        positions = torch.arange(width, device=ids.device).expand(len(ids), width)
        cache.place(positions, start=0)
        e = model.embed(ids[:, :width], positions, cache)
        core.append(_seconds(lambda: model.recur(e, e, positions, cache, 0), ids.device))  # noqa: B023
        decode = _seconds(lambda: model.decode(e, positions, cache), ids.device)  # noqa: B023
        embed = _seconds(lambda: model.embed(ids[:, :width], positions, cache), ids.device)  # noqa: B023
        ends.append(embed + decode)
    return CostCurve(tuple(core), tuple(ends))


def _seconds(work, device: torch.device) -> float:
    """Median time of a call, after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


class PromptDepth:
    """How many recurrences the prompt's positions needed, seen while the prompt is read.

    Args:
        columns: how many of the last columns to look at.
        threshold: a position still needs recurrences while they move it by this share (`latent_difference`).
    """

    def __init__(self, columns: int, threshold: float = 0.03):
        self.columns, self.threshold = columns, threshold
        self.start()

    def start(self) -> None:
        """A pass begins. A prompt read in chunks has several, of which the last counts."""
        self.count = 0
        self.needed: torch.Tensor | None = None

    def __call__(self, states: torch.Tensor, before: torch.Tensor) -> None:
        """After a recurrence: [batch, width, channels] both."""
        moved = latent_difference(states[:, -self.columns :], before[:, -self.columns :])
        if self.needed is None:
            self.needed = torch.ones_like(moved)
        self.count += 1
        self.needed = torch.where(moved < self.threshold, self.needed, self.count + 1)

    @property
    def recurrences(self) -> float:
        """What half of the positions needed."""
        return float(self.needed.flatten().float().median())


def steady_wave(stay: float, wavefront: int) -> tuple[float, float]:
    """Ticks a token, and positions in the wave, once a text is under way.

    A tick commits `wavefront / stay` tokens at most, and one (`headway`) at most. Where these bounds meet it commits
    less than either: the corner is rounded as texts of the trained checkpoints round it (docs/theory.md). Positions
    that have converged wait for those on their left, so a wave with room holds somewhat more than `stay` of them.

    Args:
        stay: ticks a position needs, 1 or more.
    """
    ticks = (1 + (stay / wavefront) ** 3) ** (1 / 3)
    positions = (wavefront**-3 + (1.2 * stay) ** -3) ** (-1 / 3)
    return ticks, max(positions, 1.0)


def choose_wave(
    curve: CostCurve, recurrences: float, budget: int, inner_recurrence: int | None = None
) -> tuple[int, int]:
    """The wavefront and inner recurrence that should cost the least time a token.

    A position that needs d recurrences needs d / r' ticks; see `steady_wave`. Room for more than twice as many
    positions is used where a text does not converge, and speeds up nothing.

    Args:
        recurrences: d, how many a position needs.
        budget: the most recurrences of a position; r' is not more.
        inner_recurrence: r', where it is not to be chosen.
    """
    candidates = [r for r in INNER_RECURRENCES if r <= budget] if inner_recurrence is None else [inner_recurrence]

    def seconds(wave: tuple[int, int]) -> float:
        wavefront, inner = wave
        ticks, positions = steady_wave(max(recurrences / inner, 1), wavefront)
        return ticks * curve.seconds_per_tick(positions, inner)

    waves = [(w, r) for r in candidates for w in WAVEFRONTS if w <= 2 * max(recurrences / r, 1)]
    return min(waves, key=seconds)


class PromptAgreement:
    """How often readouts after few recurrences predict what the last one does, seen while the prompt is read.

    Args:
        model: whose coda reads the states out; its keys and values are written again by the prompt's own pass.
        depths: the recurrences to look at.
        steps: recurrences of a pass.
        columns: how many of the last columns to look at.
    """

    def __init__(
        self, model: RecurrentDepthInterface, cache: RecurrentDepthCache, depths: list[int], steps: int, columns: int
    ):
        self.model, self.cache, self.depths, self.steps, self.columns = model, cache, depths, steps, columns
        self.predicted: dict[int, torch.Tensor] = {}
        self.start()

    def start(self) -> None:
        """A pass begins. A prompt read in chunks has several, of which the last counts."""
        self.count = 0

    def __call__(self, states: torch.Tensor, before: torch.Tensor) -> None:
        """After a recurrence: [batch, width, channels] both."""
        self.count += 1
        if self.count in (*self.depths, self.steps):
            logits = self.model.decode(
                states, self.cache.placement.positions, self.cache, logits_to_keep=min(self.columns, states.shape[1])
            )
            self.predicted[self.count] = logits.argmax(-1)

    @property
    def shares(self) -> dict[int, float]:
        """By depth, the share of equal predictions."""
        truth = self.predicted[self.steps]
        return {depth: float((self.predicted[depth] == truth).float().mean()) for depth in self.depths}


def choose_draft_depth(curve: CostCurve, shares: dict[int, float], steps: int) -> int:
    """The draft depth k that should cost the least time a token.

    A full wave has r / k positions and a tick commits one token; a wrong draft costs the ticks until the wave is full
    again. So a token takes 1 + (1 - a) (r / k - 1) ticks, with a share a of right drafts.

    Args:
        shares: a, by k.
        steps: r.
    """

    def seconds(depth: int) -> float:
        width = steps // depth
        ticks = 1 + (1 - shares[depth]) * (width - 1)
        return ticks * curve.seconds_per_tick(width, depth, ends=2)

    return min(shares, key=seconds)

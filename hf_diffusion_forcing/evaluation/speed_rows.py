"""Calls of one sampler, each timed next to a short call of autoregression, and their row in a table."""

import statistics
from dataclasses import dataclass, field

import torch

from ..generation.sampler import Sampler
from .measure import equal_tokens
from .model_shape import ModelShape
from .timing import Call, linear_seconds


@dataclass
class Timing:
    """All calls of one sampler, each with its reference measurements.

    Memory speed on a shared machine changes from minute to minute. Just before each call, a short call of the base
    and the speed of reading weights are therefore measured.

    Attributes:
        calls: in order.
        bases: the base's call before each call.
        rates: bytes per second at which linear layers read their weights, before each call.
    """

    calls: list[Call] = field(default_factory=list)
    bases: list[Call] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def sum(self, name: str) -> float:
        """The sum of an attribute over the calls."""
        return sum(getattr(call, name) for call in self.calls)


def part_bytes(model) -> dict[str, int]:
    """Bytes of the linear weights that each verb reads: "embed", "recur" and "decode"."""
    return {verb: part.weight_bytes for verb, part in ModelShape.of_model(model).verbs.items()}


@torch.no_grad()
def bandwidth(model, repeats: int = 9) -> float:
    """Bytes per second at which the model's linear layers read their weights, one position at a time."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    return size / linear_seconds(layers, 1, repeats)


def row(
    name: str, timing: Timing, sampler: type[Sampler], texts: list[list[int]] | None, parts: dict[str, int]
) -> dict:
    """One row of a table; each call is compared with its own base call.

    Args:
        sampler: the sampler of the calls.
        texts: the base's texts, for the share of equal tokens; None if that is meaningless.
        parts: bytes that each verb reads (`part_bytes`).
    """
    pairs = list(zip(timing.bases, timing.calls, strict=True))
    ideal = []
    for call, rate in zip(timing.calls, timing.rates, strict=True):
        ends = call.ticks if sampler.ticks_read_out else call.tokens
        ideal.append(((parts["embed"] + parts["decode"]) * ends + parts["recur"] * call.core_passes) / rate)
    speedups = [base.seconds_per_token / call.seconds_per_token for base, call in pairs]
    whole = [(base.first + call.tokens * base.seconds_per_token) / call.seconds for base, call in pairs]
    equal = None
    if texts is not None:
        equal = equal_tokens([call.rows[0] for call in timing.calls], texts) / sum(map(len, texts))
    return {
        "sampler": name,
        "tokens_per_second": timing.sum("tokens") / timing.sum("decoding"),
        "speedup": statistics.median(speedups),
        "speedup_range": [min(speedups), max(speedups)],
        "speedup_end_to_end": statistics.median(whole),
        "first_token_speedup": statistics.median(base.first / call.first for base, call in pairs),
        "core_passes_per_token": timing.sum("core_passes") / timing.sum("tokens"),
        "positions_per_core_pass": timing.sum("recurrences") / timing.sum("core_passes"),
        "equal_share": equal,
        "ms_per_tick": 1000 * statistics.median(call.decoding / call.ticks for call in timing.calls),
        "tick_over_ideal": statistics.median(
            call.decoding / seconds for call, seconds in zip(timing.calls, ideal, strict=True)
        ),
        "kv_bytes": timing.calls[-1].output.cache.nbytes,
    }

"""What the figures of a trace share."""

from collections.abc import Sequence

import torch

from ..generation.trace import Trace, WaveTick
from .matplotlib_names import Axes, LineCollection, MaxNLocator, Normalize

SETTLED_IS_DARK = "cividis"
"""Readable with colour blindness and in grey print: its lightness rises evenly."""


def check_trace(trace: object) -> None:
    """TypeError unless it is a trace."""
    if not isinstance(trace, Trace):
        raise TypeError(f"trace is a {type(trace).__name__}: pass the trace of generate(return_trace=True).")


def waves_of(trace: Trace, row: int) -> list[WaveTick]:
    """A row's waves, without ticks that were repeated.

    Raises:
        TypeError: `trace` is not a trace.
        IndexError: there is no such row.
        ValueError: there is nothing to draw.
    """
    check_trace(trace)
    waves = [wave for wave in trace.of_row(row) if not wave.abandoned]
    if not waves:
        raise ValueError(f"Row {row} ended at its first token, so there is no wave to draw: choose another prompt.")
    return waves


def draw_lines(
    axes: Axes, lines: Sequence[list[tuple[int, float]]], positions: Sequence[int], norm: Normalize
) -> LineCollection:
    """Draw one line for each position, coloured by position, over whole recurrences and a logarithmic axis."""
    collection = LineCollection(lines, cmap="viridis", norm=norm, linewidth=0.9, alpha=0.7)
    collection.set_array(torch.tensor(positions).numpy())
    axes.add_collection(collection)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    return collection


def draw_threshold(axes: Axes, threshold: float | None) -> None:
    """Draw a criterion's threshold, if it has one above 0."""
    if threshold:
        axes.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")


def value_name(criterion: str | None) -> str:
    """The axis label for the values of the exit criterion of that name."""
    units = {
        "latent_difference": "change of the latent state, share of its norm",
        "latent_acceleration": "second difference of the latent state, share of its norm",
        "cosine": "1 - cosine of the latent state and the last",
        "entropy": "change of the entropy (nats)",
        "kl": "KL divergence from the last tick (nats)",
        "min_p_kl": "KL divergence of the likely tokens (nats)",
        "exit_gate": "probability of having left",
    }
    return units.get(criterion, f"value of {criterion}")


def no_values(trace: Trace) -> str:
    """The error for a trace without exit values."""
    reason = f"exit_criterion={trace.criterion!r}" if trace.criterion else f"sampler={trace.sampler!r}"
    return f"There are no exit values to draw: {reason} has none. Use exit_criterion='latent_difference', for example."

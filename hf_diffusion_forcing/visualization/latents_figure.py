"""The paths of latent states as a figure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..generation.trace import Trace
from .drawing import waves_of
from .latents import principal_components
from .matplotlib_names import Axes, Figure, LineCollection, MaxNLocator, Normalize, ScalarMappable


def plot_latents(trace: Trace, row: int = 0, positions: Sequence[int] | None = None) -> Figure:
    """Draw the paths of latent states, tick by tick, in the two directions in which they vary most (PCA).

    Each position has a path from the state after its first tick to its last; a dot marks the end of a committed one.
    The left side shows the states themselves. On the right, every path starts where its input token last changed and is
    shifted so that its last state is in the middle, to show how states converge. Each side has its own directions.

    Args:
        trace: the trace of `generate(return_trace="latents")`.
        row: row of the batch.
        positions: absolute positions to draw; all when None.

    Raises:
        TypeError, IndexError: `trace` is not a trace, or there is no such row.
        ValueError: the trace has no latents, or there is nothing to draw.
    """
    paths = _paths(trace, row, positions)
    stacked = {position: torch.stack(path.states) for position, path in paths.items()}
    since = {position: states[paths[position].begun :] for position, states in stacked.items()}
    converging = {position: states - states[-1] for position, states in since.items() if len(states) > 1}
    if not converging:
        raise ValueError(f"positions={positions!r} leave no path of two ticks to draw: draw more of them.")
    ended = {position for position, path in paths.items() if path.is_committed}

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    norm = Normalize(min(paths), max(paths) + 1)
    _draw(left, "Latent states", stacked, ended, norm)
    _draw(right, "On the way to their last state", converging, ended, norm)
    left.legend(fontsize=8)
    mappable = ScalarMappable(norm, "viridis")
    figure.colorbar(mappable, ax=[left, right], label="position", ticks=MaxNLocator(integer=True))
    return figure


@dataclass
class _Path:
    """The states of a position, tick by tick.

    Attributes:
        begun: index of the first state since the input token last changed.
        recurrences: those of the last state.
    """

    states: list[torch.Tensor] = field(default_factory=list)
    begun: int = 0
    recurrences: int = 0
    is_committed: bool = False


def _paths(trace: Trace, row: int, positions: Sequence[int] | None) -> dict[int, _Path]:
    """The finite states of a row by position.

    Raises:
        ValueError: the trace has no latents.
    """
    paths: dict[int, _Path] = {}
    for wave in waves_of(trace, row):
        if wave.latents is None:
            raise ValueError("The trace holds no latents: make it with generate(return_trace='latents').")
        for place, state in enumerate(wave.latents):
            position, recurrences = wave.start + place, wave.recurrences[place]
            # States that overflowed cannot be drawn.
            if (positions is None or position in positions) and bool(state.isfinite().all()):
                path = paths.setdefault(position, _Path())
                if recurrences <= path.recurrences:
                    path.begun = len(path.states)
                path.recurrences = recurrences
                path.states.append(state)
                path.is_committed |= place < len(wave.committed)
    return paths


def _draw(axes: Axes, title: str, paths: dict[int, torch.Tensor], ended: set[int], norm: Normalize) -> None:
    """Draw paths [ticks, channels] in their two principal directions, with a dot where those of `ended` end."""
    points, shares = principal_components(torch.cat(list(paths.values())))
    split = dict(zip(paths, points.split([len(path) for path in paths.values()]), strict=True))
    lines = LineCollection([path.numpy() for path in split.values()], cmap="viridis", norm=norm, linewidth=0.9)
    lines.set(array=torch.tensor(list(split)).numpy(), alpha=0.7)
    axes.add_collection(lines)
    starts = torch.stack([path[0] for path in split.values()])
    axes.scatter(*starts.T.numpy(), marker="+", s=18, color="0.35", linewidth=0.8, label="after the first tick")
    ends = [(*path[-1].tolist(), position) for position, path in split.items() if position in ended]
    if ends:
        x, y, colours = zip(*ends, strict=True)
        style = {"cmap": "viridis", "norm": norm, "s": 18, "edgecolor": "black", "linewidth": 0.4}
        axes.scatter(x, y, c=colours, **style, label="committed", zorder=3)
    axes.autoscale_view()
    axes.set_title(title, fontsize=10)
    for axis, which, share in ((axes.xaxis, "first", shares[0]), (axes.yaxis, "second", shares[1])):
        axis.set_label_text(f"{which} principal component ({100 * share:.0f}% of the variance)")
    axes.grid(alpha=0.25)

"""The wavefront as a figure: what every tick worked on."""

from collections.abc import Sequence

import torch

from ..generation.trace import Trace, WaveTick
from .drawing import SETTLED_IS_DARK, no_values, value_name, waves_of
from .matplotlib_names import Axes, Figure, LogNorm, MaxNLocator, PatchCollection, Rectangle, colormaps

CELL = 0.16
"""Width and height of a cell of the wavefront in inches, if there is room."""

LARGEST = 20.0
"""Largest width and height of a figure in inches."""

VECTOR_CELLS = 10_000
"""More shapes than this are drawn as pixels, because a file with so many is slow to open."""


def plot_wavefront(
    trace: Trace, row: int = 0, color_by: str | None = None, labels: Sequence[str] | None = None
) -> Figure:
    """Draw the wave of a row: ticks downwards, positions to the right, and a cell for every position in a tick's wave.

    A dot marks a position committed in the tick (its prediction is final), a cross one that was dropped.

    Args:
        trace: the trace of `generate(return_trace=True)`.
        row: row of the batch.
        color_by: "exit_value" (the value the exit criterion compared with its threshold, on a logarithmic scale; grey
            without a value above 0) or "recurrences" (since the input token last changed; for the speculative
            wavefront the depth). By default "exit_value" if there are values. Darker cells have converged further.
        labels: texts of the row's new tokens, to write at their positions instead of numbers.

    Raises:
        TypeError, IndexError: `trace` is not a trace, or there is no such row.
        ValueError: there is nothing to draw, `color_by` is unknown, or it is "exit_value" but there are no values.
    """
    waves = waves_of(trace, row)
    has_values = any(value for wave in waves for value in wave.exit_values)
    if color_by not in (None, "exit_value", "recurrences"):
        raise ValueError(f"color_by={color_by!r} is unknown: use 'exit_value' or 'recurrences'.")
    if color_by == "exit_value" and not has_values:
        raise ValueError(no_values(trace))
    by_value = has_values and color_by != "recurrences"

    first, end = waves[0].start, max(wave.start + wave.width for wave in waves)
    top, ticks = waves[0].tick, waves[-1].tick - waves[0].tick + 1
    cell = min(CELL, LARGEST / (end - first), LARGEST / ticks)
    figure = Figure(figsize=(max(cell * (end - first), 3) + 1.8, max(cell * ticks, 2) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    cells = _cells(waves, by_value, cell)
    axes.add_collection(cells)
    marked = _mark(axes, waves, cell)
    axes.set(xlim=(first - 0.5, end - 0.5), ylim=(top + ticks - 0.5, top - 0.5), ylabel="tick")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _label_positions(axes, first, end, labels if cell > 0.09 else None, cell)
    axes.set_title(f"The wavefront of {trace.sampler}", fontsize=10)
    axes.set_aspect("equal")
    if marked:
        axes.legend(loc="upper right", frameon=False)
    _add_colour_bar(axes, cells, trace, by_value)
    return figure


def _cells(waves: list[WaveTick], by_value: bool, size: float) -> PatchCollection:
    """A cell for every position in a tick's wave, coloured by exit value or recurrences; `size` in inches."""
    cells, colours = [], []
    for wave in waves:
        cells += [Rectangle((position - 0.5, wave.tick - 0.5), 1, 1) for position in _positions(wave)]
        colours += [value or float("nan") for value in wave.exit_values] if by_value else wave.recurrences
    colormap = colormaps[SETTLED_IS_DARK if by_value else f"{SETTLED_IS_DARK}_r"]
    shapes = PatchCollection(cells, cmap=colormap.with_extremes(bad="0.85"))
    shapes.set(edgecolor="white", linewidth=2.5 * size, rasterized=len(cells) > VECTOR_CELLS)
    values = torch.tensor(colours, dtype=torch.float32)
    shapes.set_array(values.numpy())
    shown = values[values.isfinite()]
    low, high = shown.min().item(), shown.max().item()
    if by_value:
        shapes.set_norm(LogNorm(low, max(high, 1.001 * low)))
    else:
        shapes.set_clim(0, high)
    return shapes


def _positions(wave: WaveTick) -> range:
    return range(wave.start, wave.start + wave.width)


def _mark(axes: Axes, waves: list[WaveTick], size: float) -> bool:
    """Mark committed and dropped positions in cells of `size` inches; whether there are any."""
    committed = [(place, wave.tick) for wave in waves for place in _positions(wave)[: len(wave.committed)]]
    dropped = [(place, wave.tick) for wave in waves for place in _positions(wave)[wave.width - len(wave.discarded) :]]
    kinds = ((committed, "committed", "o", "white", "black"), (dropped, "dropped", "X", "black", "white"))
    for points, name, marker, face, edge in kinds:
        if points:
            style = {"s": (45 * size) ** 2, "marker": marker, "facecolor": face, "edgecolor": edge}
            axes.scatter(*zip(*points, strict=True), **style, linewidth=4 * size, label=name, zorder=2)
    return bool(committed or dropped)


def _label_positions(axes: Axes, first: int, end: int, labels: Sequence[str] | None, size: float) -> None:
    """Write the tokens at their positions, or numbers without `labels`."""
    if labels is None:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("position (tokens from the start of the prompt)")
        return
    texts = [_shown(text) for text in labels]
    places = range(first, min(end, first + len(texts)))
    # A dollar sign in a token does not start a formula.
    axes.set_xticks(places, texts[: len(places)], rotation=90, fontsize=40 * size, parse_math=False)
    axes.set_xlabel("position (its final token; blank past the end of the text)")


def _add_colour_bar(axes: Axes, cells: PatchCollection, trace: Trace, by_value: bool) -> None:
    """Add a colour bar for the cells, with a line at the threshold."""
    name = value_name(trace.criterion) if by_value else "recurrences since the input token last changed"
    bar = axes.figure.colorbar(cells, ax=axes, shrink=0.6, label=name)
    if not by_value:
        bar.locator = MaxNLocator(integer=True)
    elif trace.threshold and cells.norm.vmin <= trace.threshold <= cells.get_array().max():
        bar.ax.axhline(trace.threshold, color="white", linewidth=3)
        bar.ax.axhline(trace.threshold, color="black", linewidth=1)


def _shown(text: str) -> str:
    """A token's text on one short line, with pure white space and characters without a glyph made visible."""
    text = (text.strip() or text.replace(" ", "\u2423")).replace("\n", "\\n").replace("\t", "\\t")
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= 16 else text[:15] + "\u2026"

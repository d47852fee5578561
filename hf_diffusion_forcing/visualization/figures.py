"""Figures of a trace. Each is a standalone matplotlib `Figure`, without a window or global state."""

from collections.abc import Sequence

import torch

from ..generation.trace import Trace, WaveTick
from .latents import principal_components

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(f'Figures need matplotlib ({error}): pip install "hf-diffusion-forcing[plot]"') from error

SETTLED_IS_DARK = "cividis"
"""Readable with colour blindness and in grey print: its lightness rises evenly."""

CELL = 0.16
"""Width and height of a cell of the wavefront in inches, if there is room."""

LARGEST = 20.0
"""Largest width and height of a figure in inches."""

VECTOR_CELLS = 10_000
"""More shapes than this are drawn as pixels, because a file with so many is slow to open."""


def _waves(trace: Trace, row: int) -> list[WaveTick]:
    """A row's waves, without ticks that were repeated.

    Raises:
        TypeError: `trace` is not a trace.
        IndexError: there is no such row.
        ValueError: there is nothing to draw.
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"trace is a {type(trace).__name__}: pass the trace of generate(return_trace=True).")
    waves = [wave for wave in trace.of_row(row) if not wave.abandoned]
    if not waves:
        raise ValueError(f"Row {row} ended at its first token, so there is no wave to draw: choose another prompt.")
    return waves


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
    waves = _waves(trace, row)
    has_values = any(value for wave in waves for value in wave.exit_values)
    if color_by not in (None, "exit_value", "recurrences"):
        raise ValueError(f"color_by={color_by!r} is unknown: use 'exit_value' or 'recurrences'.")
    if color_by == "exit_value" and not has_values:
        raise ValueError(_no_values(trace))
    by_value = has_values and color_by != "recurrences"

    cells, colours, committed, dropped = [], [], [], []
    for wave in waves:
        places = range(wave.start, wave.start + wave.width)
        cells += [Rectangle((position - 0.5, wave.tick - 0.5), 1, 1) for position in places]
        colours += [value or float("nan") for value in wave.exit_values] if by_value else wave.recurrences
        committed += [(position, wave.tick) for position in places[: len(wave.committed)]]
        dropped += [(position, wave.tick) for position in places[wave.width - len(wave.discarded) :]]

    first, end = waves[0].start, max(wave.start + wave.width for wave in waves)
    top, ticks = waves[0].tick, waves[-1].tick - waves[0].tick + 1
    cell = min(CELL, LARGEST / (end - first), LARGEST / ticks)
    figure = Figure(figsize=(max(cell * (end - first), 3) + 1.8, max(cell * ticks, 2) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    colormap = colormaps[SETTLED_IS_DARK if by_value else f"{SETTLED_IS_DARK}_r"]
    shapes = PatchCollection(cells, cmap=colormap.with_extremes(bad="0.85"))
    shapes.set(edgecolor="white", linewidth=2.5 * cell, rasterized=len(cells) > VECTOR_CELLS)
    values = torch.tensor(colours, dtype=torch.float32)
    shapes.set_array(values.numpy())
    shown = values[values.isfinite()]
    low, high = shown.min().item(), shown.max().item()
    if by_value:
        shapes.set_norm(LogNorm(low, max(high, 1.001 * low)))
    else:
        shapes.set_clim(0, high)
    axes.add_collection(shapes)
    size = (45 * cell) ** 2
    for points, marker, edge, name in ((committed, "o", "black", "committed"), (dropped, "X", "white", "dropped")):
        if points:
            face = "white" if marker == "o" else "black"
            style = {"s": size, "marker": marker, "facecolor": face, "edgecolor": edge, "linewidth": 4 * cell}
            axes.scatter(*zip(*points, strict=True), **style, label=name, zorder=2)

    axes.set(xlim=(first - 0.5, end - 0.5), ylim=(top + ticks - 0.5, top - 0.5), ylabel="tick")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if labels is not None and cell > 0.09:
        texts = [_shown(text) for text in labels]
        places = range(first, min(end, first + len(texts)))
        # A dollar sign in a token does not start a formula.
        axes.set_xticks(places, texts[: len(places)], rotation=90, fontsize=40 * cell, parse_math=False)
        axes.set_xlabel("position (its final token; blank past the end of the text)")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("position (tokens from the start of the prompt)")
    axes.set_title(f"The wavefront of {trace.sampler}", fontsize=10)
    axes.set_aspect("equal")
    if committed or dropped:
        axes.legend(loc="upper right", frameon=False)
    _add_colour_bar(axes, shapes, trace, by_value)
    return figure


def _add_colour_bar(axes: Axes, shapes: PatchCollection, trace: Trace, by_value: bool) -> None:
    """Add a colour bar for the cells, with a line at the threshold."""
    name = _value_name(trace) if by_value else "recurrences since the input token last changed"
    bar = axes.figure.colorbar(shapes, ax=axes, shrink=0.6, label=name)
    if not by_value:
        bar.locator = MaxNLocator(integer=True)
    elif trace.threshold and shapes.norm.vmin <= trace.threshold <= shapes.get_array().max():
        bar.ax.axhline(trace.threshold, color="white", linewidth=3)
        bar.ax.axhline(trace.threshold, color="black", linewidth=1)


def plot_convergence(trace: Trace, row: int = 0) -> Figure:
    """Draw the exit criterion's value over recurrences, with a line for each position of a row.

    When a position's input token changes, its line ends and another of the same colour starts. A dot marks where the
    position was committed. The axis is logarithmic, so values of 0 are not drawn.

    Args:
        trace: the trace of `generate(return_trace=True)`.
        row: row of the batch.

    Raises:
        TypeError, IndexError: `trace` is not a trace, or there is no such row.
        ValueError: there is nothing to draw, or the sampler or its criterion has no values.
    """
    lines: dict[int, list[list[tuple[int, float]]]] = {}
    last: dict[int, int] = {}
    committed = []
    for wave in _waves(trace, row):
        for place, (recurrences, value) in enumerate(zip(wave.recurrences, wave.exit_values, strict=True)):
            position = wave.start + place
            segments = lines.setdefault(position, [])
            if recurrences <= last.get(position, recurrences):
                segments.append([])
            last[position] = recurrences
            if value:
                segments[-1].append((recurrences, value))
                if place < len(wave.committed):
                    committed.append((recurrences, value, position))
    drawn = [(position, segment) for position, segments in lines.items() for segment in segments if segment]
    if not drawn:
        raise ValueError(_no_values(trace))

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    norm = Normalize(min(lines), max(lines) + 1)
    collection = LineCollection([segment for _, segment in drawn], cmap="viridis", norm=norm, linewidth=0.9, alpha=0.7)
    collection.set_array(torch.tensor([position for position, _ in drawn]).numpy())
    axes.add_collection(collection)
    if committed:
        x, y, positions = zip(*committed, strict=True)
        style = {"cmap": "viridis", "norm": norm, "s": 16, "edgecolor": "black", "linewidth": 0.4}
        axes.scatter(x, y, c=positions, **style, label="committed", zorder=3)
    if trace.threshold:
        axes.axhline(
            trace.threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {trace.threshold:g}"
        )
    axes.set_yscale("log")
    axes.set_xlim(0, 1.03 * max(x for _, segment in drawn for x, _ in segment))
    axes.autoscale_view(scalex=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("recurrences since the input token last changed")
    axes.set_ylabel(_value_name(trace))
    axes.set_title("How positions converge", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", fontsize=8)
    figure.colorbar(collection, ax=axes, label="position", ticks=MaxNLocator(integer=True))
    return figure


def plot_recurrences(trace: Trace, row: int | None = None) -> Figure:
    """Draw a histogram of the recurrences that tokens took, over a row or the whole batch.

    It counts all recurrences of the position that predicted a token, including those on wrong drafts. A row's first
    token comes from the prompt's own pass and is not counted.

    Args:
        trace: the trace of `generate(return_trace=True)`.
        row: row of the batch; all rows when None.

    Raises:
        TypeError, IndexError: `trace` is not a trace, or there is no such row.
        ValueError: no tick has committed a token.
    """
    if not isinstance(trace, Trace):
        raise TypeError(f"trace is a {type(trace).__name__}: pass the trace of generate(return_trace=True).")
    rows = range(len(trace.starts)) if row is None else [row]
    spent = [token.recurrences for each in rows for token in trace.tokens(each) if token.tick is not None]
    if not spent:
        raise ValueError("No tick has committed a token, so there is nothing to count: choose another prompt.")
    step = min(wave.core_passes for wave in trace.waves)
    edges = [step * (count + 0.5) for count in range(max(spent) // step + 1)]

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(spent, bins=[-0.5 * step, *edges], color=colormaps[SETTLED_IS_DARK](0.25), edgecolor="white")
    mean = sum(spent) / len(spent)
    axes.axvline(mean, color="black", linestyle="--", linewidth=1, label=f"mean {mean:.1f}")
    axes.axvline(trace.budget, color="black", linestyle=":", linewidth=1.2, label=f"budget {trace.budget}")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("recurrences spent on a token")
    axes.set_ylabel("tokens")
    axes.set_title(f"Recurrences of {len(spent)} tokens", fontsize=10)
    axes.legend(fontsize=8)
    return figure


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
    paths: dict[int, list[torch.Tensor]] = {}
    begun: dict[int, int] = {}
    last: dict[int, int] = {}
    committed = []
    for wave in _waves(trace, row):
        if wave.latents is None:
            raise ValueError("The trace holds no latents: make it with generate(return_trace='latents').")
        for place, state in enumerate(wave.latents):
            position = wave.start + place
            # States that overflowed cannot be drawn.
            if (positions is None or position in positions) and bool(state.isfinite().all()):
                path = paths.setdefault(position, [])
                if wave.recurrences[place] <= last.get(position, wave.recurrences[place]):
                    begun[position] = len(path)
                last[position] = wave.recurrences[place]
                path.append(state)
                if place < len(wave.committed):
                    committed.append(position)
    if sum(max(len(path) - begun[position], 1) - 1 for position, path in paths.items()) < 1:
        raise ValueError(f"positions={positions!r} leave no path of two ticks to draw: draw more of them.")
    stacked = {position: torch.stack(path) for position, path in paths.items()}
    since = {position: path[begun[position] :] for position, path in stacked.items()}
    rest = {position: path - path[-1] for position, path in since.items() if len(path) > 1}

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    norm = Normalize(min(paths), max(paths) + 1)
    for axes, drawn, title in ((left, stacked, "Latent states"), (right, rest, "On the way to their last state")):
        points, shares = principal_components(torch.cat(list(drawn.values())))
        split = dict(zip(drawn, points.split([len(path) for path in drawn.values()]), strict=True))
        lines = LineCollection([path.numpy() for path in split.values()], cmap="viridis", norm=norm, linewidth=0.9)
        lines.set(array=torch.tensor(list(split)).numpy(), alpha=0.7)
        axes.add_collection(lines)
        starts = torch.stack([path[0] for path in split.values()])
        axes.scatter(*starts.T.numpy(), marker="+", s=18, color="0.35", linewidth=0.8, label="after the first tick")
        ends = [(*path[-1].tolist(), position) for position, path in split.items() if position in committed]
        if ends:
            x, y, colours = zip(*ends, strict=True)
            style = {"cmap": "viridis", "norm": norm, "s": 18, "edgecolor": "black", "linewidth": 0.4}
            axes.scatter(x, y, c=colours, **style, label="committed", zorder=3)
        axes.autoscale_view()
        axes.set_title(title, fontsize=10)
        for axis, which, share in ((axes.xaxis, "first", shares[0]), (axes.yaxis, "second", shares[1])):
            axis.set_label_text(f"{which} principal component ({100 * share:.0f}% of the variance)")
        axes.grid(alpha=0.25)
    left.legend(fontsize=8)
    mappable = ScalarMappable(norm, "viridis")
    figure.colorbar(mappable, ax=[left, right], label="position", ticks=MaxNLocator(integer=True))
    return figure


def _shown(text: str) -> str:
    """A token's text on one short line, with pure white space and characters without a glyph made visible."""
    text = (text.strip() or text.replace(" ", "\u2423")).replace("\n", "\\n").replace("\t", "\\t")
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= 16 else text[:15] + "\u2026"


def _value_name(trace: Trace) -> str:
    """The axis label for a criterion's values."""
    units = {
        "latent_difference": "change of the latent state, share of its norm",
        "latent_acceleration": "second difference of the latent state, share of its norm",
        "cosine": "1 - cosine of the latent state and the last",
        "entropy": "change of the entropy (nats)",
        "kl": "KL divergence from the last tick (nats)",
        "min_p_kl": "KL divergence of the likely tokens (nats)",
        "exit_gate": "probability of having left",
    }
    return units.get(trace.criterion, f"value of {trace.criterion}")


def _no_values(trace: Trace) -> str:
    reason = f"exit_criterion={trace.criterion!r}" if trace.criterion else f"sampler={trace.sampler!r}"
    return f"There are no exit values to draw: {reason} has none. Use exit_criterion='latent_difference', for example."

"""Figures of a trace. Each is a matplotlib `Figure` of its own: no window, no global state."""

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
"""For everyone's eyes and for grey paper: its lightness rises evenly."""

CELL = 0.16
"""Inches a cell of the wavefront is wide and high, while there is room."""

LARGEST = 20.0
"""Inches a figure is wide or high at most."""

VECTOR_CELLS = 10_000
"""More of them are drawn as pixels: a file with so many shapes is slow to open."""


def _waves(trace: Trace, row: int) -> list[WaveTick]:
    """A row's waves, without ticks that were made again.

    Raises:
        TypeError: not a trace.
        IndexError: no such row.
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
    """The wave of a row: ticks downwards, positions to the right, a cell for every position in a tick's wave.

    A dot is a position that was committed in the tick (what it predicts is final), a cross one that was dropped.

    Args:
        trace: of `generate(return_trace=True)`.
        row: of the batch.
        color_by: "exit_value" (what the exit criterion compared with its threshold, on a logarithmic scale; grey where
            it has no value above 0) or "recurrences" (since the input token last changed; of the speculative wavefront
            the depth). By default the first, where there are values. The further a position is, the darker.
        labels: the row's new tokens as text, written at their positions instead of numbers.

    Raises:
        TypeError, IndexError: no trace, or no such row.
        ValueError: nothing to draw, an unknown `color_by`, or "exit_value" of a trace without values.
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
    values = torch.tensor(colours)
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
        # A dollar sign in a token is no formula.
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
    """What the colours of cells mean; a line where the threshold is."""
    name = _value_name(trace) if by_value else "recurrences since the input token last changed"
    bar = axes.figure.colorbar(shapes, ax=axes, shrink=0.6, label=name)
    if not by_value:
        bar.locator = MaxNLocator(integer=True)
    elif trace.threshold and shapes.norm.vmin <= trace.threshold <= shapes.get_array().max():
        bar.ax.axhline(trace.threshold, color="white", linewidth=3)
        bar.ax.axhline(trace.threshold, color="black", linewidth=1)


def plot_convergence(trace: Trace, row: int = 0) -> Figure:
    """How the exit criterion's value falls with a position's recurrences: a line for each position of a row.

    A line ends, and another of the same colour begins, where the position's input token has changed. A dot is where the
    position was committed. Values of 0 are not drawn: the axis is logarithmic.

    Args:
        trace: of `generate(return_trace=True)`.
        row: of the batch.

    Raises:
        TypeError, IndexError: no trace, or no such row.
        ValueError: nothing to draw, or no values: the sampler or its criterion has none.
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
    """How many recurrences tokens took: a histogram over the tokens of a row, or of the whole batch.

    All are counted that were spent on the position that predicted a token, on wrong drafts too. A row's first token
    comes from the prompt's own pass and is left out.

    Args:
        trace: of `generate(return_trace=True)`.
        row: of the batch; all rows when None.

    Raises:
        TypeError, IndexError: no trace, or no such row.
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
    """The paths of latent states, tick by tick, in the two directions in which they vary most (PCA).

    A path is a position's; it begins at the state after its first tick and ends, at a dot where it was committed, with
    its last. On the left are the states themselves: where the text's positions lie. On the right every path begins
    where its input token last changed and its last state is moved to the middle: how states come to rest. Each side
    has its own directions.

    Args:
        trace: of `generate(return_trace="latents")`.
        row: of the batch.
        positions: absolute positions to draw; all when None.

    Raises:
        TypeError, IndexError: no trace, or no such row.
        ValueError: a trace without latents, or nothing to draw.
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
            # What overflowed has no place in a picture.
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
    """A token's text on one short line; white space alone is made visible, and so is what no font has a sign for."""
    text = (text.strip() or text.replace(" ", "\u2423")).replace("\n", "\\n").replace("\t", "\\t")
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= 16 else text[:15] + "\u2026"


def _value_name(trace: Trace) -> str:
    """What a criterion's values are, for an axis."""
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

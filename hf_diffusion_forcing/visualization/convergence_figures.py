"""How positions converge and how many recurrences tokens take, as figures."""

from ..generation.trace import Trace
from .drawing import SETTLED_IS_DARK, check_trace, draw_lines, draw_threshold, no_values, value_name, waves_of
from .matplotlib_names import Figure, MaxNLocator, Normalize, colormaps


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
    for wave in waves_of(trace, row):
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
        raise ValueError(no_values(trace))

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    norm = Normalize(min(lines), max(lines) + 1)
    collection = draw_lines(axes, [segment for _, segment in drawn], [position for position, _ in drawn], norm)
    if committed:
        x, y, positions = zip(*committed, strict=True)
        style = {"cmap": "viridis", "norm": norm, "s": 16, "edgecolor": "black", "linewidth": 0.4}
        axes.scatter(x, y, c=positions, **style, label="committed", zorder=3)
    draw_threshold(axes, trace.threshold)
    axes.set_xlim(0, 1.03 * max(x for _, segment in drawn for x, _ in segment))
    axes.autoscale_view(scalex=False)
    axes.set_xlabel("recurrences since the input token last changed")
    axes.set_ylabel(value_name(trace.criterion))
    axes.set_title("How positions converge", fontsize=10)
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
    check_trace(trace)
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

"""What every recurrence does to the positions of some texts, as one figure."""

from ..evaluation.insight_summary import by_depth, criterion_name
from ..evaluation.recurrence_insight import RecurrenceInsight
from .drawing import SETTLED_IS_DARK, draw_lines, draw_threshold, value_name
from .matplotlib_names import Axes, Figure, MaxNLocator, Normalize, colormaps

LINES = 200
"""Positions with a line of their own; of more, some are left out evenly."""


def plot_insight(insight: RecurrenceInsight) -> Figure:
    """Draw a `RecurrenceInsight`: settling, agreement, entropy and divergence by depth, and what tokens need.

    Args:
        insight: of `inspect_recurrences` or `inspect_prompts`.

    Raises:
        TypeError: `insight` is something else.
    """
    if not isinstance(insight, RecurrenceInsight):
        raise TypeError(f"insight is a {type(insight).__name__}: pass the result of inspect_recurrences().")
    figure = Figure(figsize=(10, 7), layout="constrained")
    (settling, agreement), (needs, certainty) = figure.subplots(2, 2)
    records = by_depth(insight)
    _draw_settling(figure, settling, insight, records)
    lines = {"agreement": "equal to the last", "settled": "settled (estimate)", "exited": "exit criterion met"}
    for name, label in lines.items():
        _draw_column(agreement, records, name, label, factor=100)
    agreement.set(title="Readouts by depth", ylabel="positions, %", ylim=(0, 103))
    _draw_needs(needs, insight)
    for name, label in {"divergence": "KL divergence to the last", "entropy": "entropy"}.items():
        _draw_column(certainty, records, name, label)
    certainty.set(title="The next token's distribution", ylabel="nats, mean over positions")
    for axes in (settling, agreement, needs, certainty):
        axes.set_xlabel("recurrences")
        axes.title.set_fontsize(10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8)
    if not insight.has_readable_shallow_states:
        figure.suptitle("Shallow readouts of this model may be untrained", fontsize=9)
    return figure


def _draw_settling(figure: Figure, axes: Axes, insight: RecurrenceInsight, records: list[dict]) -> None:
    """Changes of the states: a line for each position, the median and the 90 % quantile."""
    places = range(0, len(insight), -(-len(insight) // LINES))
    norm = Normalize(0, max(int(insight.positions.max()), 1))
    lines = [
        [(depth, change) for depth, change in enumerate(insight.changes[:, place].tolist(), 1) if change > 0]
        for place in places
    ]
    collection = draw_lines(axes, lines, insight.positions[list(places)].tolist(), norm)
    for name, label, style in (("change", "median", "-"), ("change_90", "90 % quantile", ":")):
        _draw_column(axes, records, name, label, color="black", linestyle=style, linewidth=1.8)
    if insight.criterion == "latent_difference":
        draw_threshold(axes, insight.threshold)
    axes.set(title="How states settle", ylabel=value_name("latent_difference"))
    figure.colorbar(collection, ax=axes, label="position", ticks=MaxNLocator(integer=True))


def _draw_needs(axes: Axes, insight: RecurrenceInsight) -> None:
    """Histograms of the depths from which readouts stay the same, and at which the exit criterion is met."""
    edges = [depth + 0.5 for depth in range(insight.num_steps + 1)]
    exits = insight.exit_depths
    met = exits[exits <= insight.num_steps].tolist()
    labels = ["readout stays the same", f"{criterion_name(insight)} met ({len(met)} of {len(insight)})"]
    colours = [colormaps[SETTLED_IS_DARK](shade) for shade in (0.25, 0.75)]
    axes.hist([insight.needed.tolist(), met], bins=edges, color=colours, label=labels)
    axes.set(title=f"Recurrences that {len(insight)} tokens need", ylabel="tokens")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_column(axes: Axes, records: list[dict], name: str, label: str, factor: float = 1, **style) -> None:
    """A quantity by depth, where it is finite."""
    points = [(each["recurrences"], factor * each[name]) for each in records if each[name] is not None]
    style = {"marker": "o", "markersize": 2.5} | style
    if points:
        axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.grid(alpha=0.25)

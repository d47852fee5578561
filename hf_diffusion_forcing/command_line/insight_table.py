"""The tables of `inspect` in the terminal."""

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

ALL = 12
"""Up to this many depths all have a line; of more, the lines get sparser with depth."""


def shown_depths(num_steps: int) -> list[int]:
    """The depths that have a line."""
    if num_steps <= ALL:
        return list(range(1, num_steps + 1))
    depths, step = [1, 2, 3, 4], 2
    while depths[-1] < num_steps:
        depths += [depths[-1] + step, depths[-1] + 2 * step]
        step *= 2
    return [depth for depth in depths if depth < num_steps] + [num_steps]


def depth_table(insight) -> Table:
    """A line for each depth shown: settling, agreement, and how many tokens need up to that depth."""
    from ..evaluation.insight_summary import by_depth

    records, depths = by_depth(insight), shown_depths(insight.num_steps)
    needed, exits = insight.needed, insight.exit_depths
    title = f"{insight.model_name}, {len(insight):,} positions of {int(insight.rows.max()) + 1} texts"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headings = ["recur-\nrences", "change\nmedian", "\n90 %", "equal\nto last", "KL to\nlast"]
    for heading in [*headings, "settled\n(estim.)", "exit\nmet", "tokens\nneeding", "tokens\nexiting"]:
        table.add_column(heading, justify="right", no_wrap=True)
    for before, depth in zip([0, *depths], depths, strict=False):
        record = records[depth - 1]
        here = [str(int(((count > before) & (count <= depth)).sum())) for count in (needed, exits)]
        table.add_row(
            str(depth) if depth - before == 1 else f"{before + 1}-{depth}",
            *(number(record[name]) for name in ("change", "change_90")),
            percent(record["agreement"]),
            number(record["divergence"]),
            percent(record["settled"]),
            percent(record["exited"]),
            *here,
        )
    return table


def token_table(insight, tokenizer, count: int) -> Table:
    """The positions whose readouts changed last."""
    from ..evaluation.insight_summary import by_token, most_needed

    records = by_token(insight, tokenizer)
    table = Table(title="Tokens that need most", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("text", "position", "after", "next token"):
        table.add_column(name, justify="right" if name in ("text", "position") else "left", overflow="fold")
    for name in ("needs", "exit", "margin"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for record in (records[place] for place in most_needed(insight, count)):
        table.add_row(
            str(record["row"] + 1),
            str(record["position"]),
            quoted(record["before"]),
            quoted(record["predicted"]),
            str(record["needed"]),
            "never" if record["exit"] is None else str(record["exit"]),
            number(record["margin"]),
            record["verdict"],
        )
    return table


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def quoted(text: str) -> str:
    """A text with its line ends visible; its brackets are no markup."""
    return escape(repr(text))

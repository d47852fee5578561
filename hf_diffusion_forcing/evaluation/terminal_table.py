"""Tables of samplers for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..generation.samplers import SAMPLERS


def terminal_table(
    headings: list[str],
    rows: Iterable[list[str]],
    title: str | None = None,
    padding: int | tuple[int, ...] = (0, 1, 0, 0),
) -> Table:
    """A narrow table whose first column has samplers, which are folded where they do not fit.

    Args:
        headings: of the columns.
        rows: cells, as many as headings.
        title: above the table.
        padding: of the cells, as in rich.
    """
    table = Table(title=title, box=SIMPLE_HEAD, padding=padding, pad_edge=False)
    table.add_column(headings[0], overflow="fold", min_width=max(map(len, SAMPLERS)))
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    return table

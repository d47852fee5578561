"""Tables in Markdown."""

from collections.abc import Iterable


def markdown_table(headings: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    rule = "| --- |" + " ---: |" * (len(headings) - 1)
    return [markdown_row(headings), rule, *map(markdown_row, rows)]


def markdown_row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

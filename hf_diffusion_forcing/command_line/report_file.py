"""The file that a command writes its report to, as JSON or Markdown."""

import json
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

ReportFile = Annotated[Path | None, typer.Option("--output", help="A .json or .md file for the report.")]


class Report(Protocol):
    """A result that can be written."""

    def to_dict(self) -> dict[str, Any]: ...

    def to_markdown(self) -> str: ...


def check_report_file(path: Path | None) -> None:
    """ValueError or OSError for a file that cannot be written or has another suffix."""
    from ..files import check_writable_file

    if path is not None and path.suffix not in (".json", ".md"):
        raise ValueError(f"--output {path} must end in .json or .md.")
    if path is not None:
        check_writable_file(path)


def write_report(path: Path, report: Report) -> None:
    """Write a report as a whole, in the format of the path's suffix."""
    from ..files import write_file

    text = json.dumps(report.to_dict(), indent=1) if path.suffix == ".json" else report.to_markdown()
    write_file(path, text + "\n")

"""Benchmarks of several parts, each measured by itself: their rows in one JSON file, and a page of Markdown."""

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.files import write_file

ROOT = Path(__file__).parent.parent
OUTPUT = ROOT / "docs" / "benchmarks"
CHECKPOINTS = {"problems": bundled_checkpoint(), "Python source": ROOT / "tests" / "fixtures" / "python-source"}

Parts = Mapping[str, tuple[Callable[[int, int], Iterable[dict]], Callable[[dict], list[str]]]]
"""By name: what yields a part's rows, of a number of texts and of new tokens each, and what writes it as Markdown."""


def measure_parts(
    name: str, title: str, parts: Parts, count: int, counted: str, max_new_tokens: int, note: str | None = None
) -> None:
    """Run the command line of a benchmark: measure one part or all, and print the page.

    Args:
        name: of the files, and of the script behind "measure_".
        count, max_new_tokens: without options.
        counted: says what `count` is.
        note: what is said of all parts.
    """
    part_type = StrEnum("Part", {each: each for each in ("all", *parts)})

    def main(
        count: Annotated[int, typer.Option(help=counted, min=1)] = count,
        max_new_tokens: int = max_new_tokens,
        part: Annotated[part_type, typer.Option(help="What to measure.")] = part_type("all"),
        output: Path = OUTPUT,
    ) -> None:
        output.mkdir(parents=True, exist_ok=True)  # not after hours of measuring
        for each in parts if part == "all" else (part,):
            command = f"scripts/measure_{name}.py --part {each} --count {count} --max-new-tokens {max_new_tokens}"
            written = measure_part(output / f"{name}.json", title, parts, each, command, count, max_new_tokens, note)
        typer.echo(written)

    typer.run(main)


def measure_part(
    stored: Path,
    title: str,
    parts: Parts,
    part: str,
    command: str,
    count: int,
    max_new_tokens: int,
    note: str | None = None,
) -> str:
    """Measure one part, and write its rows and the page, which is returned. The other parts keep their rows.

    Args:
        stored: the JSON file; the page goes beside it.
    """
    measured = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        "command": command,
        "rows": list(parts[part][0](count, max_new_tokens)),
    }
    # Not earlier: another part may have been measured meanwhile.
    record = json.loads(stored.read_text()) if stored.exists() else {}
    write_file(stored, json.dumps(record | {part: measured}, indent=1) + "\n")
    written = page(title, parts, record | {part: measured}, note)
    write_file(stored.with_suffix(".md"), written)
    return written


def page(title: str, parts: Parts, record: dict, note: str | None = None) -> str:
    """The record as Markdown."""
    lines = [f"# {title}", *(["", note] if note else [])]
    for name, (_, write) in parts.items():
        if name in record:
            lines += ["", *write(record[name])]
    return "\n".join(lines) + "\n"


def signature(part: dict) -> str:
    """When, where and how a part was measured."""
    return f"Measured on {part['date']} on {part['machine']}, by `{part['command']}`."


def guess_counts(row: dict) -> str:
    """How many guesses of each source were right."""
    return ", ".join(f"{name}: {right} of {made}" for name, (made, right) in row["guesses"].items())

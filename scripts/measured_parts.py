"""Benchmarks of several parts, each measured by itself: their rows in one JSON file, and a page of Markdown."""

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from pathlib import Path

import torch
import typer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.files import write_file

ROOT = Path(__file__).parent.parent
CHECKPOINTS = {"problems": bundled_checkpoint(), "Python source": ROOT / "tests" / "fixtures" / "python-source"}

Parts = Mapping[str, tuple[Callable[[int, int], Iterable[dict]], Callable[[dict], list[str]]]]
"""By name: what yields a part's rows, of a number of texts and of new tokens each, and what writes it as Markdown."""


def measure_parts(
    name: str,
    title: str,
    parts: Parts,
    chosen: str,
    output: Path,
    count: int,
    max_new_tokens: int,
    argument: str | None = None,
    note: str | None = None,
) -> None:
    """Measure one part or, with "all", every part, and print the page. The others keep their rows.

    Args:
        name: of the files, and of the script behind "measure_".
        output: the folder of the files.
        argument: of the command; `--part` and the part when None.
        note: what is said of all parts.
    """
    stored = output / f"{name}.json"
    for part, (measure, _) in parts.items():
        if chosen not in ("all", part):
            continue
        measured = {
            "date": date.today().isoformat(),
            "machine": f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}",
            "command": f"scripts/measure_{name}.py {argument or f'--part {part}'} --count {count} "
            f"--max-new-tokens {max_new_tokens}",
            "rows": list(measure(count, max_new_tokens)),
        }
        # Not earlier: another part may have been measured meanwhile.
        record = json.loads(stored.read_text()) if stored.exists() else {}
        record[part] = measured
        write_file(stored, json.dumps(record, indent=1) + "\n")
        written = page(title, parts, record, note)
        write_file(stored.with_suffix(".md"), written)
    typer.echo(written)


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

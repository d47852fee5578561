"""Writes the compatibility page."""

import re
from pathlib import Path

import torch
import transformers

from ...settings.sampler_config import SAMPLER_CONFIGS
from .findings import Finding, findings, quiet
from .probes import check_probes
from .subjects import tiny_model

INTRODUCTION = """\
# Compatibility with `generate()`

What every argument of transformers' `generate()` and every field of its `GenerationConfig` does with a sampler. The
samplers' own settings have [another page](settings.md); without a sampler, `generate()` is transformers' own.

The tables are measured: `python scripts/write_compatibility.py` calls `generate()` with and without each argument, on
a tiny model with random weights. The outcome of a call is everything that can be observed: the ids, the fields of a
dict output and their values, what a streamer gets, and the widths of the passes of `forward()`.

- **works**: the argument changes the outcome. It is also checked against a reference: if a sampler refines one
  position at a time, with all its recurrences, the text must equal that of `sampler="autoregressive"` with the same
  argument; greedy `sampler="autoregressive"` must equal transformers' own decoding.
- **refused**: a `ValueError`, `TypeError` or `NotImplementedError`; its first sentence is the note.
- **no effect**: the outcome does not change; the note has the reason.

{versions}

Three notes on arguments that work:

- Logits processors see each position of a wave with its own prefix. Those that read no prefix (temperature, `top_k`,
  ...) are called once per wave, all others once for every prefix length in it.
- A draft's prefix may turn out wrong. If `prefix_allowed_tokens_fn` raises or allows nothing for such a prefix, it is
  ignored for that draft. For a final prefix, an exception ends the call.
- Stopping criteria see only committed tokens. As in transformers, they are called with the whole batch, once for every
  length that all unfinished rows have reached. A row that is longer than the length at which it ends is cut back. (Stop
  strings and `max_time` are checked row by row.) Criteria get scores only with `output_scores=True`.
"""
VERSIONS = re.compile(r"^Made with .*$", re.MULTILINE)


def note(row: dict[str, Finding]) -> str:
    """The notes of a row; notes that differ are listed with their samplers."""
    samplers: dict[str, list[str]] = {}
    for sampler, finding in row.items():
        if finding.note:
            samplers.setdefault(finding.note, []).append(sampler)
    notes = [
        text if len(names) == len(row) else f"{', '.join(f'`{name}`' for name in names)}: {text}"
        for text, names in samplers.items()
    ]
    return "; ".join(notes).replace("|", "\\|")


def page() -> str:
    """The page, measured now."""
    check_probes()
    with quiet():
        found = findings(tiny_model())
    versions = f"Made with transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}."
    parts = [INTRODUCTION.format(versions=versions)]
    for topic, rows in found.items():
        parts.append(f"## {topic}\n")
        parts.append(f"| argument | {' | '.join(f'`{name}`' for name in SAMPLER_CONFIGS)} | note |")
        parts.append("| --- |" + " --- |" * (len(SAMPLER_CONFIGS) + 1))
        for probe, row in rows:
            name = f"`{probe.argument}`" + (f": {probe.variant}" if probe.variant else "")
            statuses = " | ".join(finding.status for finding in row.values())
            parts.append(f"| {name} | {statuses} | {note(row)} |")
        parts.append("")
    return "\n".join(parts)


def is_current(path: Path, text: str) -> bool:
    """Whether a file equals a page, ignoring the versions."""
    return path.exists() and VERSIONS.sub("", path.read_text()) == VERSIONS.sub("", text)

"""The page of what was found."""

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
settings of the samplers themselves are on [a page of their own](settings.md); without a sampler `generate()` is
transformers' own.

The tables are measured: `python scripts/write_compatibility.py` calls `generate()` with and without each argument, on
a tiny model with random weights. The outcome of a call is all that can be seen: the ids, the fields of a dict output
and their values, what a streamer gets, how wide the passes of `forward()` are.

- **works**: the argument changes the outcome. It is also checked against a reference: where a sampler refines one
  position at a time, with all its recurrences, the text must be that of `sampler="autoregressive"` with the same
  argument; and `sampler="autoregressive"`, when greedy, must be transformers' own decoding.
- **refused**: a `ValueError`, `TypeError` or `NotImplementedError`; its first sentence is the note.
- **no effect**: the outcome is the same, for the reason in the note.

{versions}

Three things to know about those that work:

- Logits processors are applied to each position of a wave with its own prefix. Those that read no prefix
  (temperature, `top_k`, ...) are called once for a whole wave, any other one once for every prefix length in it.
- The prefix of a draft may be one that can never come about. `prefix_allowed_tokens_fn` may raise there, or allow
  nothing: it is then ignored for that draft. Where the prefix is final, what it raises ends the call.
- Stopping criteria are called with committed tokens, once for every length, and with the whole batch, as transformers
  does it: when all rows that go on are that long. A row that was ahead is cut back to where it ended. (Stop strings and
  `max_time` are asked row by row.) They get scores where `output_scores` is asked for.
"""
VERSIONS = re.compile(r"^Made with .*$", re.MULTILINE)


def note(row: dict[str, Finding]) -> str:
    """The notes of a row: a common one plainly, different ones each with its samplers."""
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
    """Whether a file says the same as a page; the versions it was made with are no part of that."""
    return path.exists() and VERSIONS.sub("", path.read_text()) == VERSIONS.sub("", text)

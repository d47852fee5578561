"""Writes the compatibility page from the findings."""

import re
from pathlib import Path

import torch
import transformers

from ...settings.sampler_config import SAMPLER_CONFIGS
from .findings import Finding, findings, quiet
from .probes import check_probes
from .subjects import tiny_model
from .suites import NOT_APPLICABLE

INTRODUCTION = """\
# Compatibility with `generate()`

This page lists how each sampler treats every argument of transformers' `generate()` and every field of its
`GenerationConfig`. [Settings](settings.md) lists the arguments that this package adds. Without a sampler,
`generate()` is transformers' own.

`python scripts/write_compatibility.py` measures these tables. It calls `generate()` with and without each argument,
on a tiny model with random weights, and compares everything observable: the ids, the fields of a dict output, the
tokens passed to a streamer, and the number of positions in each pass of the model.

- **works**: the argument changes the outcome, and a reference confirms the result. With one position at a time and
  all recurrences in one tick, a sampler must produce the text of `sampler="autoregressive"` with the same argument.
  Greedy `sampler="autoregressive"` must produce the text of transformers' own decoding.
- **refused**: the call raises a `ValueError`, `TypeError` or `NotImplementedError`. The note is its message.
- **no effect**: the outcome is the same. The note gives the reason.

{versions}

Details on arguments that work:

- **Logits processors** see each position of a wave with its own prefix. Processors that read no prefix (temperature,
  `top_k`, ...) run once for the whole wave. transformers' other processors run once per prefix length. Your own
  processor runs once per committed token, and drafts are chosen without it, unless it
  [declares](hooks.md#logits-processors) that it reads only its prefix.
- **`prefix_allowed_tokens_fn`** may see the prefix of a draft that no final text will contain. If it raises an error
  or allows no token there, it is ignored for that draft. If it raises an error on a final prefix, the call fails.
- **Stopping criteria** see committed tokens only, once per length. As in transformers, they see the whole batch: they
  run when all unfinished rows have reached that length. A row that was ahead is cut back to where it ended. Stop
  strings and `max_time` are checked row by row. Criteria receive scores if `output_scores` is set.
"""
SUITES = """\
## transformers' own tests

`tests/transformers_suite` runs the tests that transformers has for its own models (`ModelTesterMixin`, `ConfigTester`,
`TrainingTesterMixin`) on Huginn's, Llama's and OLMo's layout of Raven, on Ouro and on Parcae: base models, language
models and classifiers. `python scripts/fetch_transformers_tests.py` fetches them from transformers' source
distribution, as CI does. They pass, except for tests that skip themselves (for other architectures, or without a GPU)
and these:

{table}

The source distribution has no `GenerationTesterMixin`, no exporter tests and no pipeline tests. `tests/contract` covers
`generate()` and pipelines, and `tests/families/test_compile.py` covers `torch.export`. Of what `GenerationTesterMixin`
asks for, beams, assisted decoding and contrastive search need `sampler=False` (the tables above), and static caches are
refused.
"""
VERSIONS = re.compile(r"^Measured with .*$", re.MULTILINE)


def note(row: dict[str, Finding]) -> str:
    """Return the notes of a row: one note if the samplers share it, otherwise each note with its samplers."""
    samplers: dict[str, list[str]] = {}
    for sampler, finding in row.items():
        if finding.note:
            samplers.setdefault(finding.note, []).append(sampler)
    notes = [
        text if len(names) == len(row) else f"{', '.join(f'`{name}`' for name in names)}: {text}"
        for text, names in samplers.items()
    ]
    return "; ".join(notes).replace("|", "\\|")


def skipped_tests() -> str:
    """Return the table of transformers' tests that do not apply."""
    rows = [f"| `{row.test}` | {', '.join(row.families) or 'all'} | {row.reason} |" for row in NOT_APPLICABLE]
    return "\n".join(("| test | models | reason |", "| --- | --- | --- |", *rows))


def page() -> str:
    """Measure everything and return the page."""
    check_probes()
    with quiet():
        found = findings(tiny_model())
    versions = f"Measured with transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}."
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
    parts.append(SUITES.format(table=skipped_tests()))
    return "\n".join(parts)


def is_current(path: Path, text: str) -> bool:
    """Whether a file has the same content as a page, apart from the versions."""
    return path.exists() and VERSIONS.sub("", path.read_text()) == VERSIONS.sub("", text)

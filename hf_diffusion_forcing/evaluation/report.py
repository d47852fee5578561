"""The result of an evaluation: one row per sampler, one record per sample, as a table, JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from ..files import write_file
from .markdown import markdown_table
from .provenance import provenance
from .task import Task, find_answer
from .terminal_table import terminal_table

COLUMNS = {
    "sampler": ("sampler", str),
    "accuracy": ("right", "{:.1%}".format),
    "interval": ("95 %\ninterval", lambda ends: "{:.0f}-{:.0f}%".format(*(100 * end for end in ends))),
    "tokens_per_second": ("tokens\n/s", "{:.1f}".format),
    "speedup": ("speedup", "{:.2f}x".format),
    "recurrences_per_token": ("recurr.\n/token", "{:.1f}".format),
    "core_passes_per_token": ("passes\n/token", "{:.2f}".format),
    "token_agreement": ("equal\ntokens", "{:.1%}".format),
    "same_text": ("same\ntext", "{:.0%}".format),
    "edit_distance": ("edit\ndistance", "{:.3f}".format),
}
"""Columns of the tables: key, heading and format. docs/evaluation.md explains them."""


@dataclass
class Evaluation:
    """The result of `evaluate_samplers`.

    Attributes:
        task: the task.
        settings: all arguments, versions and the machine, as JSON values.
        batches: the results of `run_batch`, per batch and sampler.
    """

    task: Task
    settings: dict[str, Any]
    batches: list[dict[str, dict[str, Any]]]

    @property
    def names(self) -> list[str]:
        """The samplers; the first is the baseline."""
        return list(self.settings["samplers"])

    def outputs(self, name: str, key: str) -> list:
        """All "texts" or "tokens" of a sampler, in the task's order."""
        return [output for batch in self.batches for output in batch[name][key]]

    def total(self, name: str, key: str) -> float:
        """Sum over the batches of a sampler's "seconds", "core_passes" or "recurrences"."""
        return sum(batch[name][key] for batch in self.batches)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One row per sampler: the columns of the table, and the totals behind them. Missing values, such as the
        accuracy of a task without references, are None."""
        from .metrics import EditDistance, ExactAnswer, TokenAgreement

        exact, agreement, distance = (m(keep_in_memory=True) for m in (ExactAnswer, TokenAgreement, EditDistance))
        pattern = self.task.answer_pattern
        references = [sample.reference for sample in self.task.samples]
        base_texts, base_tokens = (self.outputs(self.names[0], key) for key in ("texts", "tokens"))
        rows = []
        for name in self.names:
            texts, tokens = self.outputs(name, "texts"), self.outputs(name, "tokens")
            count, seconds = sum(map(len, tokens)), self.total(name, "seconds")
            decoded = max(count - len(tokens), 1)  # the first token of each text comes from the prompt's own pass
            judged = {}
            if self.task.is_judged:
                judged = exact.compute(predictions=texts, references=references, answer_pattern=pattern)
            equal = agreement.compute(predictions=tokens, references=base_tokens)
            rows.append(
                {
                    "sampler": name,
                    "accuracy": judged.get("exact_answer"),
                    "interval": [judged["low"], judged["high"]] if judged else None,
                    "answered": judged.get("answered"),
                    "samples": len(texts),
                    "tokens": count,
                    "seconds": seconds,
                    "core_passes": self.total(name, "core_passes"),
                    "recurrences": self.total(name, "recurrences"),
                    "tokens_per_second": count / seconds,
                    "speedup": count / seconds / rows[0]["tokens_per_second"] if rows else 1.0,
                    "recurrences_per_token": self.total(name, "recurrences") / decoded,
                    "core_passes_per_token": self.total(name, "core_passes") / decoded,
                    "token_agreement": equal["token_agreement"],
                    "same_text": equal["same"],
                    "edit_distance": distance.compute(predictions=texts, references=base_texts)["edit_distance"],
                }
            )
        return rows

    @cached_property
    def warnings(self) -> list[str]:
        """Reasons to doubt the accuracy, in words."""
        task, found = self.task, []
        if not task.is_judged:
            return found
        for name in self.names:
            texts = self.outputs(name, "texts")
            answered = sum(task.answer(text) is not None for text in texts)
            if 2 * answered < len(texts):
                missing = next(text for text in texts if task.answer(text) is None)
                found.append(
                    f"{name}: the answer pattern {task.answer_pattern!r} matches {answered} of {len(texts)} outputs; "
                    f"it does not match {missing[-80:]!r}."
                )
        if task.answer_pattern is not None:
            texts = [sample.reference for sample in task.samples]
            whole = [text for text in texts if find_answer(task.answer_pattern, text) is None and " " in text.strip()]
            if whole:
                found.append(
                    f"The answer pattern does not match {len(whole)} of {len(texts)} references, which count as the "
                    f"answer as a whole: {whole[0][-80:]!r}."
                )
        return found

    @property
    def samples(self) -> list[dict[str, Any]]:
        """One record per sample: prompt, reference, and every sampler's text, token ids and judgement."""
        outputs = {name: (self.outputs(name, "texts"), self.outputs(name, "tokens")) for name in self.names}
        return [
            {
                "index": sample.index,
                "prompt": sample.prompt,
                "reference": sample.reference,
                "outputs": {
                    name: {
                        "text": texts[place],
                        "tokens": tokens[place],
                        "answer": self.task.answer(texts[place]) if self.task.is_judged else None,
                        "right": self.task.is_right(sample, texts[place]) if self.task.is_judged else None,
                    }
                    for name, (texts, tokens) in outputs.items()
                },
            }
            for place, sample in enumerate(self.task.samples)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Settings, rows and warnings as plain JSON values."""
        return {"settings": self.settings, "rows": self.rows, "warnings": self.warnings}

    def cells(self, keys: Iterable[str] = COLUMNS) -> tuple[list[str], list[list[str]]]:
        """Headings, and the cells of every row, without empty columns."""
        keys = [key for key in keys if self.rows[0][key] is not None]
        return [COLUMNS[key][0] for key in keys], [[COLUMNS[key][1](row[key]) for key in keys] for row in self.rows]

    def table(self) -> Table:
        """A table for the terminal, with the columns that fit into 80 characters."""
        headings, rows = self.cells(key for key in COLUMNS if key != "edit_distance")
        return terminal_table(headings, rows, self.title, padding=0)

    @property
    def title(self) -> str:
        model = Path(self.settings["model"]["name"]).name
        return f"{model} on {self.task.name}: {len(self.task.samples)} samples"

    def to_markdown(self) -> str:
        """The table, its provenance, and the warnings."""
        headings, rows = self.cells()
        lines = [f"# {self.title}", "", *markdown_table([heading.replace("\n", " ") for heading in headings], rows)]
        settings = self.settings
        processes = "one process" if settings["processes"] == 1 else f"{settings['processes']} processes"
        lines += [
            "",
            f"Batches of {settings['batch_size']}, at most {settings['max_new_tokens']} new tokens, seed "
            f"{settings['seed']}, {settings['model']['dtype']}, {processes}. Measured by "
            f"`hf-diffusion-forcing evaluate` on {provenance(settings)}.",
        ]
        lines += [f"\n**Note**: {warning}" for warning in self.warnings]
        return "\n".join(lines) + "\n"

    def to_csv(self) -> str:
        """All rows."""
        text = io.StringIO()
        rows = [row | dict(zip(("low", "high"), row["interval"] or (None, None), strict=True)) for row in self.rows]
        writer = csv.DictWriter(text, [key for key in rows[0] if key != "interval"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def save(self, folder: str | os.PathLike) -> None:
        """Write `results.json`, `results.csv`, `results.md` and `samples.jsonl`, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "samples.jsonl", "".join(json.dumps(sample) + "\n" for sample in self.samples))
        write_file(folder / "results.csv", self.to_csv())
        write_file(folder / "results.md", self.to_markdown())
        write_file(folder / "results.json", json.dumps(self.to_dict(), indent=1) + "\n")

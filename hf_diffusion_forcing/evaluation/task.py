"""A task: prompts, references, and the pattern that finds an answer in an output."""

from __future__ import annotations

import hashlib
import json
import random
import re
import string
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..settings.validation import check_integer, nearest
from .problems import problems
from .python_source import source_starts

if TYPE_CHECKING:
    from datasets import Dataset

BUNDLED = ("problems", "worked", "mental", "python-source")
"""Tasks that need no file: problems of one or both kinds, and starts of Python source."""
LAST_WORD = r"([^\s.]+)[\s.]*$"
"""The answer of a bundled problem, as in `Problem.is_solved_by`."""
SEED = 2026


@dataclass(frozen=True)
class Sample:
    """One prompt.

    Attributes:
        prompt: the text to continue.
        reference: the right answer, or a text in which `Task.answer_pattern` finds it; None if unknown.
        index: its index in the original task, which `Task.split` keeps.
    """

    prompt: str
    reference: str | None
    index: int


@dataclass(frozen=True)
class Task:
    """Samples, and how to judge an output.

    Attributes:
        name: source of the samples.
        samples: at least one.
        answer_pattern: a regular expression whose first group is the answer, searched for in outputs, and in
            references, which may also be the answer itself; None compares the whole text.

    Raises:
        ValueError: there are no samples, a prompt is empty, or the pattern is not a regular expression with a group.
    """

    name: str
    samples: tuple[Sample, ...]
    answer_pattern: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "samples", tuple(self.samples))
        if not self.samples:
            raise ValueError(f"{self.name} has no samples.")
        for sample in self.samples:
            if not sample.prompt.strip():
                raise ValueError(f"Sample {sample.index} of {self.name} has an empty prompt.")
        if self.answer_pattern is not None:
            compile_pattern(self.answer_pattern)

    @classmethod
    def from_problems(cls, kind: str | None = None, count: int = 100, seed: int = SEED, held_out: bool = True) -> Task:
        """Problems of the bundled checkpoint.

        Args:
            kind: "worked" or "mental"; both alternately when None.
            count: number of problems.
            seed: seed of the stream of problems.
            held_out: whether they are those that it was not trained on.
        """
        check_integer("count", count, 1)
        chosen = islice(problems(seed, held_out=held_out, kind=kind), count)
        samples = [Sample(problem.prompt, problem.result, index) for index, problem in enumerate(chosen)]
        return cls(kind or "problems", samples, LAST_WORD)

    @classmethod
    def from_python_source(cls, count: int = 100, seed: int = SEED, length: int = 240, held_out: bool = True) -> Task:
        """Starts of Python source to continue, without right answers.

        Args:
            count: number of starts.
            seed: seed of the choice.
            length: characters of each.
            held_out: whether they are from files that are held out.
        """
        check_integer("count", count, 1)
        starts = islice(source_starts(16 * length, seed, held_out), count)
        return cls("python-source", [Sample(text[:length], None, index) for index, text in enumerate(starts)])

    @classmethod
    def bundled(cls, name: str, count: int = 100, held_out: bool = True) -> Task:
        """A task of `BUNDLED` by name."""
        if name == "python-source":
            return cls.from_python_source(count, held_out=held_out)
        return cls.from_problems(None if name == "problems" else name, count, held_out=held_out)

    @classmethod
    def from_dataset(
        cls,
        dataset: str | Dataset,
        prompt_template: str = "{prompt}",
        reference_column: str | None = None,
        answer_pattern: str | None = None,
        split: str | None = None,
        config: str | None = None,
        count: int | None = None,
    ) -> Task:
        """Samples of a `datasets` dataset.

        Args:
            dataset: rows in memory, a .json, .jsonl, .csv or .parquet file, a folder, or a name on the Hub.
            prompt_template: a text with column names in braces.
            reference_column: column of the right answers; without one, outputs are not judged.
            answer_pattern: that of the task.
            split: optional if there is only one; slices such as "test[:100]" work.
            config: a dataset's configuration.
            count: use only the first rows; all when None.

        Raises:
            ValueError: the data cannot be read, a split or column does not exist, or a row has no value.
            ImportError: `datasets` is not installed.
        """
        from .dataset_rows import load_rows

        if answer_pattern is not None:
            compile_pattern(answer_pattern)
        if count is not None:
            check_integer("count", count, 1)
        columns = template_columns(prompt_template)
        name = dataset if isinstance(dataset, str) else "dataset"
        rows = load_rows(dataset, split, config) if isinstance(dataset, str) else dataset
        named = dict.fromkeys(columns, "prompt_template")
        named |= {} if reference_column is None else {reference_column: "reference_column"}
        for column, argument in named.items():
            if column not in rows.column_names:
                raise ValueError(f"{argument}: {name} has no column {column!r}{nearest(column, rows.column_names)}.")
        if len(rows) == 0:
            raise ValueError(f"{name} has no rows{f' in split {split!r}' if split else ''}.")
        samples = []
        for index, row in enumerate(rows.select(range(min(len(rows), count or len(rows))))):
            for column in named:
                if row[column] is None:
                    raise ValueError(f"Row {index} of {name} has no value in column {column!r}.")
            reference = None if reference_column is None else str(row[reference_column])
            samples.append(Sample(prompt_template.format(**{key: row[key] for key in columns}), reference, index))
        return cls(name if split is None else f"{name}, {split}", samples, answer_pattern)

    @property
    def is_judged(self) -> bool:
        """Whether every sample has a reference."""
        return all(sample.reference is not None for sample in self.samples)

    def answer(self, text: str) -> str | None:
        """The answer in an output; None if the pattern does not match."""
        return find_answer(self.answer_pattern, text)

    def is_right(self, sample: Sample, text: str) -> bool:
        """Whether an output has the reference's answer.

        Raises:
            ValueError: the sample has no reference.
        """
        if sample.reference is None:
            raise ValueError(f"Sample {sample.index} of {self.name} has no reference: name a reference column.")
        return same_answer(self.answer(text), reference_answer(self.answer_pattern, sample.reference))

    def split(self, share: float = 0.5, seed: int = 0) -> tuple[Task, Task]:
        """Split the samples over two tasks; the same seed gives the same split.

        Args:
            share: share of the samples in the first task; each task has at least one sample.
            seed: seed of the split.

        Raises:
            ValueError: `share` is not between 0 and 1, or there is only one sample.
        """
        if not 0 < share < 1:
            raise ValueError(f"share={share} must be between 0 and 1.")
        if len(self.samples) < 2:
            raise ValueError(f"{self.name} has one sample: it cannot be split.")
        count = min(max(round(share * len(self.samples)), 1), len(self.samples) - 1)
        chosen = set(random.Random(seed).sample(range(len(self.samples)), count))
        first = [sample for place, sample in enumerate(self.samples) if place in chosen]
        second = [sample for place, sample in enumerate(self.samples) if place not in chosen]
        return Task(self.name, first, self.answer_pattern), Task(self.name, second, self.answer_pattern)

    def describe(self) -> dict[str, Any]:
        """The task's identity as JSON values."""
        content = json.dumps([[sample.index, sample.prompt, sample.reference] for sample in self.samples])
        return {
            "name": self.name,
            "samples": len(self.samples),
            "answer_pattern": self.answer_pattern,
            "content": hashlib.sha256(content.encode()).hexdigest()[:16],
        }


def batched(samples: tuple[Sample, ...], size: int) -> list[tuple[Sample, ...]]:
    """Samples in batches of `size`; the last may be smaller."""
    return [samples[first : first + size] for first in range(0, len(samples), size)]


def compile_pattern(pattern: str) -> re.Pattern:
    """Compile an answer pattern; ValueError unless it is a regular expression with a group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"answer_pattern={pattern!r} is not a regular expression: {error}.") from error
    if compiled.groups == 0:
        raise ValueError(f"answer_pattern={pattern!r} has no group: put the answer in parentheses, as in '#### (.*)'.")
    return compiled


def template_columns(template: str) -> list[str]:
    """The columns in a prompt template.

    Raises:
        ValueError: there are none, or the template holds more than plain names.
    """
    try:
        columns = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"prompt_template={template!r} is not a template: {error}.") from error
    if not columns:
        raise ValueError(f"prompt_template={template!r} names no column: put one in braces, as in 'Q: {{question}}'.")
    for name in columns:
        if not re.fullmatch(r"[^.\[\]]+", name):
            raise ValueError(
                f"prompt_template={template!r}: {{{name}}} is not the name of a column. (Write braces of the text "
                "itself twice.)"
            )
    return list(dict.fromkeys(columns))


def find_answer(pattern: str | None, text: str) -> str | None:
    """The first matched group of the pattern's first match; the whole text without a pattern."""
    if pattern is None:
        return text
    match = re.search(pattern, text)
    return None if match is None else next((group for group in match.groups() if group is not None), None)


def reference_answer(pattern: str | None, reference: str) -> str:
    """The answer in a reference; the whole reference if the pattern does not match."""
    found = find_answer(pattern, reference)
    return reference if found is None else found


def same_answer(found: str | None, right: str) -> bool:
    """Whether two answers are equal up to surrounding space, or as numbers ("1,000.0" and "1000")."""
    return found is not None and plain_answer(found) == plain_answer(right)


def plain_answer(answer: str) -> str | Decimal:
    """An answer without surrounding space, as a number if it is one."""
    answer = answer.strip()
    try:
        number = Decimal(re.sub(r"(?<=\d),(?=\d{3})", "", answer))
    except InvalidOperation:
        return answer
    return number if number.is_finite() else answer

"""Continues the prompt of every row of a dataset, resumable, on one process or several."""

from __future__ import annotations

import json
import os
import time
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..evaluation.dataset_rows import load_rows
from ..evaluation.journal import Journal
from ..evaluation.processes import begin_together, is_split, process_state
from ..evaluation.provenance import describe_model, versions
from ..evaluation.task import BUNDLED, Task
from ..serving.mixin import LIMITS, ContinuousGenerationMixin
from ..settings.validation import check_integer
from .finished_rows import FinishedRows
from .output_file import OutputFile
from .progress import Progress
from .prompts import Prompts
from .row_decoder import RowDecoder


@dataclass(frozen=True)
class MapResult:
    """What a batch job has done.

    Attributes:
        output: the file with all rows.
        rows: of the dataset.
        decoded: rows that this call decoded; the others were finished before.
        failed: rows with an error.
        tokens: new tokens of the rows that this call decoded, on all processes.
        seconds: that this call decoded for, on the process that took longest.
        prefix_hit_rate: share of the main process's prompt positions that were not read, since prompts began alike.
    """

    output: Path
    rows: int
    decoded: int
    failed: int
    tokens: int
    seconds: float
    prefix_hit_rate: float

    @property
    def tokens_per_second(self) -> float:
        """0.0 if nothing was decoded."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"output": str(self.output), "tokens_per_second": self.tokens_per_second}


def map_dataset(
    model: ContinuousGenerationMixin,
    tokenizer: PreTrainedTokenizerBase,
    dataset: str | Dataset,
    output: str | os.PathLike,
    prompt_column: str | None = None,
    prompt_template: str | None = None,
    chat_column: str | None = None,
    split: str | None = None,
    config: str | None = None,
    count: int | None = None,
    output_column: str = "output",
    max_new_tokens: int = 160,
    seed: int = 0,
    same_seed: bool = False,
    keep_seed: bool = False,
    keep_logprobs: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    **keywords: Any,
) -> MapResult | None:
    """Continue the prompt of every row, and write the rows in order with their texts.

    Finished rows are kept in a journal beside the output, so that the same call resumes a job that was interrupted,
    even killed. Each text is the one that `generate()` returns for the prompt alone, so it does not depend on the rows
    decoded beside it, on interruptions or on the number of processes (`accelerate launch`, `torchrun`), which share
    the rows. A row that cannot be decoded has an error instead of a text; the next call tries it again.

    Args:
        model, tokenizer: a recurrent-depth model, whole on each process.
        dataset: rows in memory, a bundled task's name, a .json, .jsonl, .csv or .parquet file, a folder, or a name on
            the Hub.
        output: a .jsonl or .parquet file.
        prompt_column, prompt_template, chat_column: one source of the prompts, see `Prompts`.
        split: optional if there is only one; slices such as "test[:100]" work.
        config: a dataset's configuration.
        count: use only the first rows; all when None.
        output_column: column for the texts. `{output_column}_tokens`, `_finish_reason` and `_error` are beside it.
        max_new_tokens: room for every text.
        seed: row i is decoded with seed + i.
        same_seed: decode every row with `seed`, so that models whose states start from noise can share prefixes.
        keep_seed: write the column `{output_column}_seed`.
        keep_logprobs: write the column `{output_column}_logprobs`, the logarithm of each token's probability.
        strict: end at the first row with an error.
        overwrite: discard an earlier job, and replace the output.
        progress: show a progress bar; on a terminal only when None.
        keywords: of `generate()`, such as `sampler_preset` and `stop_strings`, and the limits of
            `init_continuous_batching()`.

    Returns:
        What was done; None on all processes but the main one, which writes the output.

    Raises:
        TypeError, ValueError: an argument is wrong, the journal is that of another job, or a job that still runs writes
            the output; nothing was decoded. Or `strict`, and a row has failed.
        KeyboardInterrupt: Ctrl+C; the message says what was finished.
    """
    for name, value, least in (("max_new_tokens", max_new_tokens, 1), ("seed", seed, 0)):
        check_integer(name, value, least)
    if is_split(model):
        raise ValueError("The model is split over the processes: load it whole on each, which then share the rows.")
    prompts = Prompts(prompt_column, prompt_template, chat_column)
    file = OutputFile.of(output, output_column, keep_seed, keep_logprobs)
    rows = chosen_rows(dataset, split, config, count)
    prompts.check(rows.column_names, tokenizer)
    file.check(rows, overwrite)
    limits = {name: keywords.pop(name) for name in LIMITS if name in keywords}
    keywords["max_new_tokens"] = max_new_tokens
    decoder = RowDecoder(model, tokenizer, rows, prompts, keywords, seed, same_seed, keep_logprobs, limits)
    decoder.check()
    job = Job(decoder, file, Journal(file.journal, identity_of(decoder), overwrite), strict, progress)
    return job.run()


def chosen_rows(dataset: str | Dataset, split: str | None, config: str | None, count: int | None) -> Dataset:
    """The rows of a job.

    Raises:
        TypeError: it is no dataset with numbered rows.
        ValueError: nothing can be read there, or there are no rows.
    """
    if count is not None:
        check_integer("count", count, 1)
    if isinstance(dataset, str) and dataset in BUNDLED:
        samples = Task.bundled(dataset, count or 100).samples
        return Dataset.from_dict({name: [getattr(s, name) for s in samples] for name in ("prompt", "reference")})
    if not isinstance(dataset, str | Dataset):
        raise TypeError(f"dataset is a {type(dataset).__name__}: pass the name of one, or a datasets.Dataset.")
    rows = load_rows(dataset, split, config) if isinstance(dataset, str) else dataset.with_format(None)
    if not len(rows):
        raise ValueError(f"{dataset if isinstance(dataset, str) else 'The dataset'} has no rows.")
    return rows if count is None else rows.select(range(min(count, len(rows))))


def identity_of(decoder: RowDecoder) -> dict[str, Any]:
    """Everything the texts depend on, as JSON values."""
    settings = json.loads(decoder.settings.to_json_string())
    return {
        "model": describe_model(decoder.model),
        "dataset": decoder.prompts.describe(decoder.rows, decoder.tokenizer),
        "settings": {name: value for name, value in settings.items() if name != "transformers_version"},
        "seed": decoder.seed,
        "same_seed": decoder.same_seed,
        "logprobs": decoder.keeps_logprobs,
        "versions": versions(),
    }


@dataclass
class Job:
    """One process's part of a batch job.

    Attributes:
        decoder: decodes rows.
        file: to write in the end.
        journal: keeps finished rows.
        strict: end at the first row with an error.
        progress: as in `map_dataset`.
    """

    decoder: RowDecoder
    file: OutputFile
    journal: Journal
    strict: bool
    progress: bool | None

    def run(self) -> MapResult | None:
        """Decode what is left; the main process then writes the output. It keeps other jobs away until then."""
        with self.file.locked() if process_state().is_main_process else nullcontext():
            begin_together(self.journal)
            return self._run()

    def _run(self) -> MapResult | None:
        state, total = process_state(), len(self.decoder.rows)
        with FinishedRows(self.journal.files()) as finished:
            before = finished.keys() - finished.failed
        state.wait_for_everyone()
        left = [number for number in range(total) if number not in before]
        began = time.perf_counter()
        try:
            self._decode(left[state.process_index :: state.num_processes], len(before))
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(self._how_to_resume()) from stop
        finally:
            self.journal.close()
        state.wait_for_everyone()
        seconds = time.perf_counter() - began
        if not state.is_main_process:
            return None
        with FinishedRows(self.journal.files()) as finished:
            if missing := [number for number in left if number not in finished]:
                raise ValueError(
                    f"{len(missing)} rows are not in {self.journal.folder}, such as row {missing[0]}: all processes "
                    "need the same folder for the output."
                )
            self.file.write(self.decoder.rows, finished)
            tokens = sum(finished[number]["tokens"] for number in left)
            failed, hits = len(finished.failed), self.decoder.stats.prefix_hit_rate
            return MapResult(self.file.path, total, len(left), failed, tokens, seconds, hits)

    def _decode(self, mine: list[int], finished: int) -> None:
        """Decode this process's rows and keep them as they end."""
        state = process_state()
        self.journal.open(state.process_index)
        shown = self.progress if state.is_main_process and mine else False
        name, before = "rows", finished
        if state.num_processes > 1:
            name, before = f"rows of process 1 of {state.num_processes}", 0
        with (
            Progress(before + len(mine), before, shown, name) as bar,
            closing(self.decoder.records(mine)) as every,
        ):
            for records in every:
                self.journal.append(*records)
                bar.count(records)
                for record in records:
                    if self.strict and record["error"] is not None:
                        raise ValueError(record["error"])

    def _how_to_resume(self) -> str:
        with FinishedRows(self.journal.files()) as finished:
            done = len(finished) - len(finished.failed)
        return (
            f"Interrupted. {done} of {len(self.decoder.rows)} rows are finished and kept in {self.journal.folder}: run "
            "the same again to resume."
        )

"""Runs several samplers on the same task: in batches, on several processes, and resumable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import date
from typing import Any

from accelerate.utils import gather_object
from tqdm import tqdm

from ..settings.spelling import named_samplers
from ..settings.validation import check_integer
from .decoding import WARM_UP_TOKENS, check_prompts, run_batch
from .journal import Journal
from .processes import begin_together, is_split, process_state
from .provenance import describe_machine, describe_model, versions
from .report import Evaluation
from .task import Sample, Task, batched


def evaluate_samplers(
    model,
    tokenizer,
    task: Task,
    samplers: list[str] | dict[str, dict[str, Any]],
    batch_size: int = 8,
    max_new_tokens: int = 160,
    seed: int = 0,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **generate_kwargs,
) -> Evaluation:
    """Decode a task with every sampler and compare answers, work and time.

    All samplers decode each batch in turn, so they run under the same conditions. Several processes
    (`accelerate launch`) share the batches, and each returns the whole result, with the same texts and counts as one
    process. With `output`, every finished batch is saved, and the same call resumes an interrupted run.

    Args:
        model, tokenizer: a recurrent-depth model and its left-padding tokenizer.
        task: the task.
        samplers: each as one line (`parse_sampler`), or keywords of `generate()` by name; the first is the baseline.
        batch_size: samples decoded together. It affects speed and shared core passes, but not the texts.
        max_new_tokens: room for every output.
        seed: sample i is decoded with seed + i.
        output: folder for the journal and the results; nothing is written when None.
        overwrite: discard an earlier run in `output`.
        progress: show a progress bar.
        generate_kwargs: keywords of every `generate()` call: `stop_strings`, `do_sample`, ...

    Raises:
        ValueError, TypeError: an argument is wrong, a prompt leaves no room, or `output` has another run; raised before
            any decoding.
        ImportError: the packages of the extra `eval` are not installed.
    """
    from . import metrics  # noqa: F401  (reports missing packages before any decoding)

    check_integer("batch_size", batch_size, 1)
    check_integer("max_new_tokens", max_new_tokens, 1)
    common = generate_kwargs | {"max_new_tokens": max_new_tokens}
    named = named_samplers(samplers)
    calls = {name: kwargs | common for name, kwargs in named.items()}
    identity = {
        "model": describe_model(model),
        "task": task.describe(),
        "samplers": {
            name: {"generate": kwargs, "settings": model.decoding_config(**calls[name]).sampler_config.to_dict()}
            for name, kwargs in named.items()
        },
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "generate": generate_kwargs,
        "versions": versions(),
    }
    check_prompts(model, tokenizer, task, max_new_tokens)
    journal = None if output is None else Journal(output, identity, overwrite)
    batches = batched(task.samples, batch_size)
    begin_together(journal)
    done = {record["batch"]: record for record in (journal.read() if journal else [])}
    process_state().wait_for_everyone()
    mine = _share(model, [number for number in range(len(batches)) if number not in done])
    records = []
    for number, runs in _decode(model, tokenizer, batches, mine, calls, seed, journal, progress):
        records.append({"batch": number, "runs": runs})
        if journal is not None:
            journal.append(records[-1])
    if journal is not None:
        journal.close()
    # A batch's number makes it count once, whichever process measured it.
    done |= {record["batch"]: record for record in gather_object(records)}
    state = process_state()
    settings = identity | {
        "machine": describe_machine(model),
        "date": date.today().isoformat(),
        "processes": 1 if is_split(model) else state.num_processes,
    }
    result = Evaluation(task, settings, [done[number]["runs"] for number in range(len(batches))])
    if journal is not None and state.is_main_process:
        result.save(journal.folder)
    return result


def _share(model, pending: list[int]) -> list[int]:
    """The batches that this process decodes."""
    state = process_state()
    return pending if is_split(model) else pending[state.process_index :: state.num_processes]


def _decode(
    model,
    tokenizer,
    batches: list[tuple[Sample, ...]],
    mine: list[int],
    calls: dict[str, dict[str, Any]],
    seed: int,
    journal: Journal | None,
    progress: bool,
) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
    """Decode each batch of `mine` with every sampler, after a short decoding of the first to warm up."""
    state = process_state()
    if mine:
        for kwargs in calls.values():
            few = {"max_new_tokens": min(WARM_UP_TOKENS, kwargs["max_new_tokens"])}
            run_batch(model, tokenizer, batches[mine[0]], kwargs | few, seed)
    if journal is not None and (state.is_main_process or not is_split(model)):
        journal.open(state.process_index)
    for number in tqdm(mine, desc="batches", disable=not (progress and state.is_main_process and mine)):
        yield (
            number,
            {name: run_batch(model, tokenizer, batches[number], kwargs, seed) for name, kwargs in calls.items()},
        )

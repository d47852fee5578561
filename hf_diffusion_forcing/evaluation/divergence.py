"""Compares two samplers on one task token by token, to find where their texts diverge."""

from __future__ import annotations

from datetime import date
from typing import Any

from tqdm import tqdm

from ..generation.samplers import SAMPLERS
from ..settings.spelling import parse_sampler
from ..settings.validation import check_integer
from .comparison import Comparison
from .decoding import check_prompts, run_batch
from .divergent_tokens import Divergence, TokenRecord, certainty, first_difference, readouts, token_kind
from .provenance import describe_machine, describe_model, versions
from .task import Sample, Task, batched

CONTEXT, AFTER = 60, 14
"""Characters of the text before a divergence, and tokens after it, that are kept."""


def compare_samplers(
    model,
    tokenizer,
    task: Task,
    baseline: str = "autoregressive",
    sampler: str = "diffusion_forcing:preset=fast",
    batch_size: int = 8,
    max_new_tokens: int = 160,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Decode a task with two samplers and examine the first token that differs in every output.

    Args:
        model, tokenizer: a recurrent-depth model and its left-padding tokenizer.
        task: the task.
        baseline: a sampler on one line (`parse_sampler`); the model's certainty is measured at its depth.
        sampler: the sampler to compare with it.
        batch_size: samples decoded together.
        max_new_tokens: room for every output.
        seed: sample i is decoded with seed + i.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: an argument is wrong, or a prompt leaves no room.
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("max_new_tokens", max_new_tokens, 1)
    room = {"max_new_tokens": max_new_tokens}
    exact, other = (parse_sampler(text) | room for text in (baseline, sampler))
    config, others = (model.decoding_config(**kwargs).sampler_config for kwargs in (exact, other))
    check_prompts(model, tokenizer, task, max_new_tokens)
    if SAMPLERS[others.sampler].has_ticks:
        other["return_trace"] = True
    settings = {
        "model": describe_model(model),
        "task": task.describe(),
        "baseline": baseline,
        "sampler": sampler,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "versions": versions(),
        "machine": describe_machine(model),
        "date": date.today().isoformat(),
    }
    result = Comparison(task, settings, [], [], [])
    for samples in tqdm(batched(task.samples, batch_size), desc="batches", disable=not progress):
        theirs, mine = (run_batch(model, tokenizer, samples, kwargs, seed) for kwargs in (exact, other))
        for row, sample in enumerate(samples):
            logits = readouts(model, tokenizer, sample.prompt, theirs["tokens"][row], seed + sample.index, config)
            outputs = [
                {key: values[row] for key, values in run.items() if isinstance(values, list)} for run in (theirs, mine)
            ]
            add_sample(result, tokenizer, sample, *outputs, logits)
    return result


def add_sample(
    result: Comparison, tokenizer, sample: Sample, theirs: dict[str, Any], mine: dict[str, Any], logits
) -> None:
    """Examine one sample's outputs up to the first token that differs.

    Args:
        theirs, mine: of the baseline and of the other: the entries of `run_batch` for this row.
        logits: float32 [tokens + 1, vocabulary], of the baseline's output at full depth.
    """
    expected, found = theirs["tokens"], mine["tokens"]
    spent = mine.get("spent", [])
    judged: tuple[bool | None, bool | None] = (None, None)
    if sample.reference is not None:
        judged = tuple(result.task.is_right(sample, run["texts"]) for run in (theirs, mine))
        result.right.append(judged)
    part = first_difference(expected, found)
    for place in range(len(expected) if part is None else part + 1):
        entropy, margin = certainty(logits[place])
        cost = spent[place] if place < len(spent) else (None, None)
        kind = token_kind(tokenizer, expected, place)
        result.tokens.append(TokenRecord(kind, entropy, margin, *cost, differs=place == part))
    if part is None:
        return

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True)

    last = result.tokens[-1]
    result.divergences.append(
        Divergence(
            index=sample.index,
            position=part,
            kind=last.kind,
            before=text(expected[:part])[-CONTEXT:],
            expected=text(expected[part : part + 1]),
            found=text(found[part : part + 1]),
            expected_text=text(expected[part : part + AFTER]),
            found_text=text(found[part : part + AFTER]),
            entropy=last.entropy,
            margin=last.margin,
            rank=1 + int((logits[part] > logits[part, found[part]]).sum()) if part < len(found) else None,
            recurrences=last.recurrences,
            exit_value=last.exit_value,
            expected_right=judged[0],
            found_right=judged[1],
        )
    )

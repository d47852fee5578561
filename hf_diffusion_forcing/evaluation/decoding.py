"""Checks a task's prompts and decodes them in batches."""

from __future__ import annotations

from typing import Any

from .task import Sample, Task
from .timing import timed_generate

WARM_UP_TOKENS = 4
"""Of the call before the first that counts: the first call of a process pays for lazy initialisation."""


def check_prompts(model, tokenizer, task: Task, max_new_tokens: int) -> None:
    """Refuse a tokenizer that cannot pad on the left, and prompts that leave no room for an output."""
    if tokenizer.pad_token_id is None or tokenizer.padding_side != "left":
        raise ValueError(
            "The tokenizer must pad on the left: set tokenizer.padding_side = 'left', and tokenizer.pad_token = "
            "tokenizer.eos_token where it has no pad token."
        )
    room = model.config.max_position_embeddings - max_new_tokens
    lengths = list(map(len, tokenizer([sample.prompt for sample in task.samples]).input_ids))
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > room:
        raise ValueError(
            f"Sample {task.samples[longest].index} of {task.name} has {lengths[longest]} tokens; with "
            f"max_new_tokens={max_new_tokens} the model's context of {model.config.max_position_embeddings} has room "
            f"for {max(room, 0)}: use fewer new tokens, or shorter prompts."
        )


def run_batch(model, tokenizer, samples: tuple[Sample, ...], kwargs: dict[str, Any], seed: int) -> dict[str, Any]:
    """Decode some samples together.

    Args:
        kwargs: keywords of `generate()`.
        seed: sample i is decoded with seed + i.

    Returns:
        texts: the outputs.
        tokens: ids of each output, including the end token if there is one.
        seconds: wall clock of the call.
        core_passes: core calls while decoding, over all rows at once; the prompts' own passes are not counted.
        recurrences: the same, counted once for every position in the call that a row still needed.
        spent: with `return_trace`, recurrences and exit value of each token.
    """
    inputs = tokenizer([sample.prompt for sample in samples], return_tensors="pt", padding=True).to(model.device)
    helper = {"tokenizer": tokenizer} if "stop_strings" in kwargs else {}
    call = timed_generate(model, inputs, kwargs | {"seed": [seed + sample.index for sample in samples]} | helper)
    record = {
        "texts": tokenizer.batch_decode(call.rows, skip_special_tokens=True),
        "tokens": call.rows,
        "seconds": call.seconds,
        "core_passes": call.core_passes,
        "recurrences": call.recurrences,
    }
    if getattr(call.output, "trace", None) is not None:
        traced = map(call.output.trace.tokens, range(len(samples)))
        record["spent"] = [[(token.recurrences, token.exit_value) for token in row] for row in traced]
    return record

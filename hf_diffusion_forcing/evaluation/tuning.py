"""Choose a sampler's settings for a model on this machine, within an accuracy budget."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from ..settings.validation import check_integer, check_number
from .candidates import SEARCH_SPACE, check_space, choose_candidates, preset_candidates, spelling
from .decoding import WARM_UP_TOKENS, check_prompts, run_batch
from .halving import FEWEST_SAMPLES, Budget, Halving, OutOfTime, Trial
from .provenance import describe_machine, describe_model, versions
from .stored_settings import stored_sampler
from .task import Sample, Task
from .tuning_result import TuningResult


def tune(
    model,
    tokenizer,
    task: Task,
    max_accuracy_loss: float = 0.5,
    min_token_agreement: float = 0.0,
    space: dict[str, dict[str, Any]] | None = None,
    trials: int = 32,
    finalists: int = 3,
    calibration_share: float = 0.5,
    batch_size: int = 1,
    max_new_tokens: int = 160,
    num_steps: int | None = None,
    seed: int = 0,
    minutes: float | None = None,
    progress: bool = True,
    measure: Callable[..., dict[str, Any]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **generate_kwargs,
) -> TuningResult:
    """Search for the fastest settings that lose no more accuracy than allowed against autoregression at full depth.

    The task's samples are split in two. Successive halving on the first part drops slow candidates and those that lose
    significantly more than allowed, and gives the others more samples. The finalists are then measured on the second
    part, which the search has not used; the result is the fastest one within the budget there. All candidates decode
    each batch in turn, next to autoregression on the same batch.

    Ctrl+C and the time limit return what has been confirmed so far.

    Args:
        model, tokenizer: a recurrent-depth model and its left-padding tokenizer.
        task: prompts like those that will be decoded, with references (or with `min_token_agreement`).
        max_accuracy_loss: points (per cent of the samples), 0 to 100.
        min_token_agreement: share of autoregression's tokens to reproduce at the same place, 0 to 1.
        space: values of each setting by sampler; `SEARCH_SPACE` and the presets when None.
        trials: number of candidates to try.
        finalists: number of candidates to confirm.
        calibration_share: share of the samples for the search.
        batch_size: samples decoded together; use the size that you will decode with.
        max_new_tokens: room for every output.
        num_steps: recurrences of autoregression, and the budget of a token; `mean_recurrence` when None.
        seed: seed of the split, the candidates and the latent states (sample i is decoded with seed + i).
        minutes: approximate time limit; none when None.
        progress: show a progress bar.
        measure: decodes samples with keywords of `generate()`; replaces `run_batch`.
        clock: returns seconds.
        generate_kwargs: keywords of every `generate()` call: `stop_strings`, ...

    Raises:
        ValueError, TypeError: an argument is wrong, a split is too small, or the model does not support the settings;
            raised before any decoding.
    """
    began = clock()
    counts = {"trials": trials, "finalists": finalists, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    check_arguments(task, counts, num_steps, minutes, space, max_accuracy_loss, min_token_agreement)
    calibration, confirmation = split(task, calibration_share, seed)
    check_prompts(model, tokenizer, task, max_new_tokens)
    depth = {} if num_steps is None else {"num_steps": num_steps}
    baseline = {"sampler": "autoregressive"} | depth
    common = generate_kwargs | {"max_new_tokens": max_new_tokens}
    decode = measure or partial(_decode, model, tokenizer, common, seed)
    with stored_sampler(model, {}):  # stored settings would mix with every candidate's
        candidates, presets = trials_for(model, space, trials, seed, depth, common)
        halving = Halving(
            candidates,
            calibration,
            decode,
            baseline,
            Budget(max_accuracy_loss, min_token_agreement),
            batch_size,
            finalists,
            None if minutes is None else began + 60 * minutes,
            clock,
            progress,
        )
        few = {"max_new_tokens": min(WARM_UP_TOKENS, max_new_tokens)}
        timed = [] if measure else [baseline | few, *(trial.kwargs | few for trial in candidates)]
        warm_up = [partial(decode, calibration.samples[:batch_size], kwargs) for kwargs in timed]
        best, stopped = search(halving, confirmation, presets, warm_up)
    settings = _provenance(model, task, calibration, confirmation) | {
        "max_accuracy_loss": max_accuracy_loss,
        "min_token_agreement": min_token_agreement,
        "space": SEARCH_SPACE if space is None else space,
        "rungs": halving.rungs,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "num_steps": num_steps or model.config.mean_recurrence,
        "seed": seed,
        "minutes": minutes,
        "generate": generate_kwargs,
        "seconds": clock() - began,
    }
    return TuningResult(best, candidates, presets, settings, stopped)


def _decode(
    model, tokenizer, common: dict[str, Any], seed: int, samples: tuple[Sample, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """`run_batch` with the keywords of every call, except those in `kwargs`."""
    return run_batch(model, tokenizer, samples, common | kwargs, seed)


def _provenance(model, task: Task, calibration: Task, confirmation: Task) -> dict[str, Any]:
    """What was measured, where and when."""
    return {
        "model": describe_model(model) | {"name": Path(model.config.name_or_path).name},
        "task": task.describe(),
        "calibration": [sample.index for sample in calibration.samples],
        "confirmation": [sample.index for sample in confirmation.samples],
        "versions": versions(),
        "machine": describe_machine(model),
        "date": date.today().isoformat(),
    }


def check_arguments(
    task: Task,
    counts: dict[str, int],
    num_steps: int | None,
    minutes: float | None,
    space: dict[str, dict[str, Any]] | None,
    max_accuracy_loss: float,
    min_token_agreement: float,
) -> None:
    """Check the arguments of `tune`.

    Raises:
        ValueError, TypeError: one is out of range, or there is nothing to judge candidates by.
    """
    check_number("max_accuracy_loss", max_accuracy_loss, 100.0)
    check_number("min_token_agreement", min_token_agreement, 1.0)
    for name, value in (counts | ({} if num_steps is None else {"num_steps": num_steps})).items():
        check_integer(name, value, 1)
    if minutes is not None:
        check_number("minutes", minutes)
        if minutes == 0:
            raise ValueError("minutes=0 leaves no time to measure: leave it out, or allow more.")
    if space is not None:
        check_space(space)
    if not task.is_judged and min_token_agreement == 0:
        raise ValueError(
            f"{task.name} has no references, so accuracy is unknown: name a reference column, or compare candidates "
            "with autoregression's text by min_token_agreement (--min-token-agreement 0.95)."
        )


def search(
    halving: Halving, confirmation: Task, presets: list[Trial], warm_up: list[Callable[[], Any]]
) -> tuple[Trial | None, str | None]:
    """Search, and confirm the finalists and the presets.

    Args:
        warm_up: short decodings with everything that will be timed.

    Returns:
        The fastest confirmed finalist, and "interrupt" or "time" if the search was stopped.
    """
    halving.plan(confirmation, len(presets))
    best = None
    try:
        for decode in warm_up:
            decode()
        for trial in halving.search(reserve=len(confirmation.samples)):
            halving.confirm(confirmation, [trial])
            if best is None and halving.budget.keeps(trial.confirmation):
                best = trial
        halving.confirm(confirmation, presets)
    except OutOfTime:
        return best, "time"
    except KeyboardInterrupt:
        return best, "interrupt"
    finally:
        halving.bar.close()
    return best, None


def trials_for(
    model, space: dict[str, dict[str, Any]] | None, count: int, seed: int, depth: dict[str, int], common: dict[str, Any]
) -> tuple[list[Trial], list[Trial]]:
    """The candidates, without equivalent ones, and the presets that the model supports.

    Args:
        depth: `num_steps`, if it is not the model's own.
        common: other keywords of every `generate()` call.

    Raises:
        ValueError: the model supports no candidate.
    """

    def canonical(kwargs: dict[str, Any]) -> str | None:
        try:
            config = model.decoding_config(**kwargs | depth | common)
        except ValueError:
            return None
        return json.dumps([kwargs["sampler"], config.sampler_config.to_dict()], sort_keys=True)

    full = depth.get("num_steps", model.config.mean_recurrence)
    named = preset_candidates(model.config.model_type, full)
    presets = {name: kwargs for name, kwargs in named.items() if canonical(kwargs) is not None}
    first = list(presets.values()) if space is None else []
    chosen = choose_candidates(SEARCH_SPACE if space is None else space, count, seed, canonical, first)
    names = {canonical(kwargs): name for name, kwargs in presets.items()}
    return (
        [Trial(spelling(kwargs | depth), kwargs | depth, preset=names.get(canonical(kwargs))) for kwargs in chosen],
        [Trial(spelling(kwargs | depth), kwargs | depth, preset=name) for name, kwargs in presets.items()],
    )


def split(task: Task, share: float, seed: int) -> tuple[Task, Task]:
    """Split a task for calibration and confirmation.

    Raises:
        ValueError: one of them would be too small.
    """
    parts = task.split(share, seed) if len(task.samples) > 1 else (task, task)
    for name, part in zip(("calibration", "confirmation"), parts, strict=True):
        if len(part.samples) < FEWEST_SAMPLES or len(task.samples) < 2:
            raise ValueError(
                f"{task.name} has {len(task.samples)} samples, and the {name} split would have {len(part.samples)}: "
                f"each needs at least {FEWEST_SAMPLES}. Use more samples, or another calibration share."
            )
    return parts

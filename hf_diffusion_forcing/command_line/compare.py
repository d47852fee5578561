"""The command `compare`."""

import json
from typing import Annotated

import typer
from rich.console import Console

from .comparison_table import comparison_table
from .console import ModelArgument, exit_on_error, load
from .options import DEMO_SEED, AsJson, Dtype, MaxNewTokens
from .sampler_options import COMPARED_SAMPLERS, PlainSettings, Samplers, compared_samplers, without_undraftable

PROBLEMS = 6
"""Held-out problems to use when no prompt is given."""


def compare(
    settings: PlainSettings,
    model: ModelArgument = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to continue. Repeatable.")] = None,
    sampler: Samplers = COMPARED_SAMPLERS,
    max_new_tokens: MaxNewTokens = 160,
    dtype: Dtype = "auto",
    as_json: AsJson = False,
) -> None:
    """Time the parallel samplers against autoregression on the same prompts (held-out problems by default).

    A setting applies to every sampler that has it.
    """
    if tuple(sampler) == COMPARED_SAMPLERS:
        sampler = without_undraftable(COMPARED_SAMPLERS, settings)
    samplers = compared_samplers(list(sampler), settings)
    from ..evaluation.problems import problems
    from ..evaluation.runs import Run
    from ..evaluation.runs import compare as compare_runs

    network, tokenizer = load(model, dtype)
    chosen = None
    if prompt is None:
        stream = problems(DEMO_SEED, held_out=True)
        chosen = [next(stream) for _ in range(PROBLEMS)]
    prompts = [tokenizer(text, return_tensors="pt").input_ids for text in prompt or [p.prompt for p in chosen]]
    runs = [Run(name, {"seed": 0} | kwargs) for name, kwargs in samplers.items()]
    with exit_on_error():
        compare_runs(network, prompts, runs, max_new_tokens=max_new_tokens)
    answers = [tokenizer.batch_decode(run.sequences, skip_special_tokens=True) for run in runs]
    if as_json:
        record = {
            run.name: {
                "settings": run.kwargs,
                "tokens": run.tokens,
                "core_passes": run.core_passes,
                "seconds": sum(run.seconds),
                "tokens_per_second": run.tokens_per_second,
                "speedup": run.tokens_per_second / runs[0].tokens_per_second,
                "equal_share": run.equal_share(runs[0]),
                "texts": texts,
            }
            for run, texts in zip(runs, answers, strict=True)
        }
        print(json.dumps(record))
    else:
        Console().print(comparison_table("The same prompts, the same model", runs, chosen, answers))

"""The command `diff`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import ModelArgument, exit_on_error
from .options import AsJson, DeviceOptions, MaxNewTokens, Seed, TaskOptions
from .sampler_options import SPELLING_HELP


def diff(
    asked: TaskOptions,
    place: DeviceOptions,
    model: ModelArgument = None,
    baseline: Annotated[
        str, typer.Option(help="The sampler to compare with, in the form of --sampler.")
    ] = "autoregressive",
    sampler: Annotated[str, typer.Option(help=SPELLING_HELP)] = "diffusion_forcing:preset=fast",
    batch_size: Annotated[int, typer.Option(help="Samples decoded together.", min=1)] = 8,
    max_new_tokens: MaxNewTokens = 160,
    seed: Seed = 0,
    examples: Annotated[int, typer.Option(help="How many differences to show.", min=0)] = 5,
    output: Annotated[Path | None, typer.Option(help="A folder for the report, its data and a figure.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show where two samplers' texts diverge: at which tokens, how sure the model was, and if the answer changes."""
    from ..evaluation.divergence import compare_samplers
    from ..evaluation.journal import check_writable
    from ..settings.spelling import parse_sampler

    with exit_on_error():
        for text in (baseline, sampler):
            parse_sampler(text)
        if output is not None:
            check_writable(output)
    task = asked.task()
    network, tokenizer = place.load(model)
    with exit_on_error():
        result = compare_samplers(
            network, tokenizer, task, baseline, sampler, batch_size, max_new_tokens, seed, progress=not as_json
        )
        if output is not None:
            result.save(output, examples)
    print(json.dumps(result.to_dict()) if as_json else result.to_markdown(examples))

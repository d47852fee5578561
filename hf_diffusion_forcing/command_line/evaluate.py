"""The command `evaluate`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import ModelArgument, exit_on_error, say
from .options import AsJson, DeviceOptions, MaxNewTokens, Seed, Stop, TaskOptions, stop_strings
from .sampler_options import COMPARED_SAMPLERS, Samplers


def evaluate(
    asked: TaskOptions,
    place: DeviceOptions,
    model: ModelArgument = None,
    sampler: Samplers = COMPARED_SAMPLERS,
    batch_size: Annotated[int, typer.Option(help="Samples decoded together.", min=1)] = 8,
    max_new_tokens: MaxNewTokens = 160,
    stop: Stop = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="A folder for all results. An interrupted run in it is resumed.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard an earlier run in the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Decode a dataset with several samplers and report the accuracy, speed, work and agreement of each."""
    from ..evaluation.evaluator import evaluate_samplers
    from ..evaluation.journal import check_writable
    from ..evaluation.processes import process_state
    from ..settings.spelling import named_samplers

    with exit_on_error():
        samplers = named_samplers(list(sampler))
        if output is not None:
            check_writable(output)
    task = asked.task()
    network, tokenizer = place.load(model)
    with exit_on_error():
        result = evaluate_samplers(
            network,
            tokenizer,
            task,
            samplers,
            batch_size,
            max_new_tokens,
            seed,
            output,
            overwrite,
            **stop_strings(stop),
        )
    if not process_state().is_main_process:
        return
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        console = Console()
        console.print(result.table())
        if output is not None:
            say(console, f"Results are in {output}.")
    for warning in result.warnings:
        Console(stderr=True, soft_wrap=True).print(f"warning: {warning}", style="yellow", highlight=False, markup=False)

"""The command `tune`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import ModelArgument, exit_on_error, fail
from .options import AsJson, DeviceOptions, MaxNewTokens, Seed, Stop, TaskOptions, stop_strings


def tune(
    asked: TaskOptions,
    place: DeviceOptions,
    model: ModelArgument = None,
    max_accuracy_loss: Annotated[
        float, typer.Option(help="Most accuracy (in points) to lose against autoregression at full depth.")
    ] = 0.5,
    min_token_agreement: Annotated[
        float, typer.Option(help="Least share of autoregression's tokens to reproduce at the same place.")
    ] = 0.0,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="SAMPLER:setting=[values],setting=[values]: the space to search instead of the default. Repeatable."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Candidates to try.")] = 32,
    calibration_share: Annotated[
        float, typer.Option(help="Share of samples to search on; the others confirm the result.")
    ] = 0.5,
    num_steps: Annotated[
        int | None, typer.Option(help="Recurrences per token; the model's own depth by default.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Approximate time limit in minutes.")] = None,
    batch_size: Annotated[int, typer.Option(help="Samples decoded together.", min=1)] = 1,
    max_new_tokens: MaxNewTokens = 160,
    stop: Stop = None,
    seed: Seed = 0,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Where to save the result: the model's own folder (updates only its generation config), or a new one."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A folder for the record of every trial, a summary and a plot.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the fastest settings for this machine within an accuracy budget."""
    from .. import bundled_checkpoint

    with exit_on_error():
        from ..evaluation.candidates import parse_space
        from ..evaluation.journal import check_writable
        from ..evaluation.processes import process_state
        from ..evaluation.stored_settings import check_save
        from ..evaluation.tuning import tune as search_settings

        space = None if search is None else parse_space(search)
        if save is not None:
            check_save(save, model or bundled_checkpoint())
        if output is not None:
            check_writable(output)
    if process_state().num_processes > 1:
        raise fail("tune runs in one process: start it without accelerate launch or torchrun.")
    task = asked.task()
    network, tokenizer = place.load(model)
    with exit_on_error():
        result = search_settings(
            network,
            tokenizer,
            task,
            max_accuracy_loss,
            min_token_agreement,
            space,
            trials,
            calibration_share=calibration_share,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            num_steps=num_steps,
            seed=seed,
            minutes=minutes,
            **stop_strings(stop),
        )
        if output is not None:
            result.write(output)
        if save is not None and result.best is not None:
            result.save(save, network, tokenizer)
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        console.print(result.to_markdown())
        for folder, what in ((output, "The record of the search is in"), (save, "The settings are saved in")):
            if folder is not None and (folder is not save or result.best is not None):
                console.print(f"{what} {folder}.")
    if result.best is None:
        raise fail(result.outcome + (f" Nothing was written to {save}." if save is not None else ""))

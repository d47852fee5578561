"""The command `calibrate`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import ModelArgument, exit_on_error, fail, say
from .options import AsJson, DeviceOptions, Seed, TaskOptions


def calibrate(
    asked: TaskOptions,
    place: DeviceOptions,
    model: ModelArgument = None,
    exit_criterion: Annotated[
        str, typer.Option(help="A criterion with a distance: settling, latent_difference, kl, ...")
    ] = "settling",
    epsilon: Annotated[float, typer.Option(help="Share of tokens that may differ from full depth.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Probability that no more do.")] = 0.95,
    num_steps: Annotated[int | None, typer.Option(help="Full depth; the model's own by default.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens that the model writes after each prompt.", min=1)] = 64,
    batch_size: Annotated[int, typer.Option(help="Prompts in a pass.", min=1)] = 8,
    seed: Seed = 0,
    sampler: Annotated[
        str | None, typer.Option(help="With --save: adaptive or diffusion_forcing; the stored one by default.")
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Where to save the threshold: the model's own folder (updates only its generation config), or a new "
            "one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the loosest exit threshold whose share of differing tokens is bounded, with a stated confidence."""
    from .. import bundled_checkpoint

    with exit_on_error():
        from ..evaluation.calibration import calibrate_prompts, settings_with
        from ..evaluation.stored_settings import check_save

        if save is not None:
            check_save(save, model or bundled_checkpoint())
    task = asked.task()
    network, tokenizer = place.load(model)
    with exit_on_error():
        if save is not None:
            settings_with(network, {}, sampler)  # refuses what cannot be saved before anything is measured
        result = calibrate_prompts(
            network,
            tokenizer,
            [sample.prompt for sample in task.samples],
            exit_criterion,
            epsilon,
            confidence,
            max_new_tokens=max_new_tokens,
            num_steps=num_steps,
            batch_size=batch_size,
            seed=seed,
            progress=not as_json,
        )
        if save is not None and result.threshold is not None:
            result.save(save, network, tokenizer, sampler)
    if as_json:
        print(json.dumps(result.to_dict()))
    elif result.threshold is not None:
        say(Console(), result.outcome)
        if save is not None:
            say(Console(), f"The criterion and its threshold are saved in {save}.")
    if result.threshold is None:
        raise fail(result.outcome + (f" Nothing was written to {save}." if save is not None else ""))

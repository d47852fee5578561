"""The command `fit`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import ModelArgument, exit_on_error, say
from .options import AsJson, DeviceOptions, Seed, TaskOptions


def fit(
    asked: TaskOptions,
    place: DeviceOptions,
    model: ModelArgument = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where to write decoding_heads.safetensors: a checkpoint's folder; the model's own by default."
        ),
    ] = None,
    draft_depth: Annotated[
        list[int] | None,
        typer.Option(help="Depth that gets a readout. Repeatable; 1 and the default draft depth by default."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of a readout and of the exit probe.", min=1)] = 64,
    extra_tokens: Annotated[int, typer.Option(help="Tokens to guess behind a draft.", min=0)] = 4,
    extra_rank: Annotated[int, typer.Option(help="Rank of the map that guesses them.", min=1)] = 192,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens that the model writes after each prompt.", min=1)] = 128,
    epochs: Annotated[int, typer.Option(help="Passes over the texts.", min=1)] = 4,
    batch_size: Annotated[int, typer.Option(help="Texts in a step.", min=1)] = 4,
    epsilon: Annotated[
        float, typer.Option(help="Share of tokens that may differ from full depth with the learned exit criterion.")
    ] = 0.01,
    confidence: Annotated[float, typer.Option(help="Probability that no more do.")] = 0.95,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Fit heads that make a model decode faster to text that it writes itself. Its weights do not change."""
    from .. import bundled_checkpoint

    with exit_on_error():
        from ..fitting import FitSettings, fit_heads
        from ..models.heads_file import HEADS_NAME, check_heads_folder, save_heads

        settings = FitSettings(
            draft_depths=draft_depth or None,
            rank=rank,
            extra_tokens=extra_tokens,
            extra_rank=extra_rank,
            max_new_tokens=max_new_tokens,
            epochs=epochs,
            batch_size=batch_size,
            epsilon=epsilon,
            confidence=confidence,
            seed=seed,
            progress=not as_json,
        )
        folder = check_heads_folder(output or model or bundled_checkpoint())
    # The bundled tasks' held-out prompts are for measurements.
    task = asked.task(held_out=False, count=600)
    network, tokenizer = place.load(model, decoding_heads=False)
    with exit_on_error():
        result = fit_heads(network, tokenizer, [sample.prompt for sample in task.samples], settings)
        save_heads(result.heads, folder / HEADS_NAME)
    if as_json:
        typer.echo(json.dumps(result.to_dict() | {"file": str(folder / HEADS_NAME)}))
        return
    console = Console()
    for line in result.lines():
        say(console, line)
    say(console, f"Written to {folder / HEADS_NAME}; the model loads them from there.")

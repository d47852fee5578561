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
    save: Annotated[
        Path | None,
        typer.Option(
            help="Where to save the heads: the model's own folder, the default (adds only their file), or a new one "
            "for the whole checkpoint."
        ),
    ] = None,
    draft_depth: Annotated[
        list[int] | None,
        typer.Option(help="Depth that gets a readout. Repeatable; 1 and the default draft depth by default."),
    ] = None,
    rank: Annotated[int, typer.Option(help="Rank of a readout and of the exit probe.", min=1)] = 64,
    extra_tokens: Annotated[int, typer.Option(help="Tokens to guess behind a draft.", min=0)] = 4,
    extra_rank: Annotated[int, typer.Option(help="Rank of the map that guesses them.", min=1)] = 192,
    start_rank: Annotated[
        int, typer.Option(help="Rank of the map that predicts initial states, at most; 0 for none.", min=0)
    ] = 192,
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
        from ..evaluation.stored_settings import check_save
        from ..fitting import FitSettings, fit_heads

        source = model or bundled_checkpoint()
        if save is None and not Path(source).is_dir():
            raise ValueError(f"{source} is no folder, so the heads cannot be saved in it: pass --save FOLDER.")
        check_save(save or source, source)
        settings = FitSettings(
            draft_depths=draft_depth or None,
            rank=rank,
            extra_tokens=extra_tokens,
            extra_rank=extra_rank,
            start_rank=start_rank,
            max_new_tokens=max_new_tokens,
            epochs=epochs,
            batch_size=batch_size,
            epsilon=epsilon,
            confidence=confidence,
            seed=seed,
            progress=not as_json,
        )
    # The bundled tasks' held-out prompts are for measurements.
    task = asked.task(held_out=False, count=600)
    network, tokenizer = place.load(model, decoding_heads=False)
    with exit_on_error():
        result = fit_heads(network, tokenizer, [sample.prompt for sample in task.samples], settings)
        result.save(save or source, network, tokenizer)
    if as_json:
        typer.echo(json.dumps(result.to_dict() | {"saved": str(save or source)}))
        return
    console = Console()
    for line in result.lines():
        say(console, line)
    say(console, f"Saved in {save or source}; the model loads them from there.")

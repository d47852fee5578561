"""The command `estimate`."""

import json
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from .console import exit_on_error, load, say
from .options import DEMO_SEED, AsJson
from .report_file import ReportFile, check_report_file, write_report

PROMPTS = 3
"""Held-out problems to decode with `--statistics own` when no prompt is given."""


def estimate(
    model: Annotated[
        str | None,
        typer.Option(
            help="A built-in name such as huginn-0125, ouro-2.6b or looped-70b, a checkpoint folder or a Hub id; the "
            "bundled checkpoint by default. Only its config is read."
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(help="h100, a100, l4, rtx4090 or m4-max, by their data sheets; this: this machine, measured."),
    ] = "this",
    tensor_parallel: Annotated[int, typer.Option(help="Devices that share every layer.", min=1)] = 1,
    context: Annotated[int, typer.Option(help="Positions that each position attends to.", min=1)] = 512,
    statistics: Annotated[
        Literal["problems", "python-source", "own"],
        typer.Option(
            help="How many passes tokens need: as measured on one of the two trained checkpoints, or on the checkpoint "
            "itself, which then is loaded and decodes on this machine."
        ),
    ] = "problems",
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A text to continue, for --statistics own. Repeatable; held-out problems by default."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most new tokens per prompt, for --statistics own.", min=2)] = 64,
    output: ReportFile = None,
    as_json: AsJson = False,
) -> None:
    """Estimate how fast a looped model decodes on a device, without the device.

    A roofline: the bytes and the arithmetic of every pass, over those of the device. Nothing runs on the device.
    """
    from .. import bundled_checkpoint
    from ..evaluation.devices import THIS, published_device
    from ..evaluation.estimate import check_fits
    from ..evaluation.estimate import estimate as estimate_speed
    from ..evaluation.model_shape import ModelShape
    from ..evaluation.published_models import config_of
    from ..evaluation.terminal_table import terminal_table
    from ..evaluation.this_device import this_device
    from ..evaluation.wave_statistics import stored_waves

    with exit_on_error():
        check_report_file(output)
        known = None if device == THIS else published_device(device)
        if prompt and statistics != "own":
            raise ValueError("--prompt needs --statistics own: add it, or leave --prompt out.")
        shape = ModelShape.of_config(config_of(model or bundled_checkpoint()), model or "the bundled checkpoint")
        if statistics != "own":
            waves = stored_waves(statistics, shape.num_steps)
            said = f"{statistics}, of the checkpoint trained on them, at r = {shape.num_steps}"
        place = known or this_device()
        check_fits(shape, place, tensor_parallel)
        if statistics == "own":
            waves = own_waves(model, prompt, max_new_tokens)
            said = f"measured on the checkpoint, up to {max_new_tokens} tokens a prompt"
        result = estimate_speed(shape, place, waves, said, tensor_parallel, context)
    if output is not None:
        write_report(output, result)
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    console = Console()
    for sentence in result.sentences():
        say(console, sentence)
    # The passes of the wave do not fit into 80 columns; they are in the report.
    headings, rows = result.cells(hidden=("positions", "recurrences_per_token"))
    headings = [heading.replace(" ", "\n").replace("-", "-\n").replace("/", "\n/") for heading in headings]
    console.print(terminal_table(headings, rows))


def own_waves(model: str | None, prompts: list[str] | None, max_new_tokens: int) -> dict[str, Any]:
    """Load the checkpoint, decode the prompts with every sampler, and count passes.

    Raises:
        ValueError: a built-in name is no checkpoint, or there is nothing to count.
        typer.Exit: the checkpoint cannot be loaded; the reason is printed.
    """
    from ..evaluation.problems import problems
    from ..evaluation.published_models import MODELS
    from ..evaluation.wave_statistics import measure_all_waves

    if model in MODELS:
        raise ValueError(
            f"--statistics own needs a checkpoint to run, and {model} is a built-in name: pass a folder or a Hub id."
        )
    network, tokenizer = load(model, "auto")
    stream = problems(DEMO_SEED, held_out=True, kind="worked")
    texts = prompts or [next(stream).prompt for _ in range(PROMPTS)]
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    return measure_all_waves(network, ids, max_new_tokens)

"""The command `benchmark`."""

import json
from typing import Annotated

import typer
from rich.console import Console

from ..settings.presets import PRESET_SAMPLERS
from .console import ModelArgument, exit_on_error, say
from .options import AsJson, DeviceOptions, PackOption, TaskOptions, pack_weights
from .report_file import ReportFile, check_report_file, write_report
from .sampler_options import SPELLING_HELP

PROMPTS = 3
DEFAULT = ("autoregressive", "adaptive", *(f"{sampler}:preset={name}" for name, sampler in PRESET_SAMPLERS.items()))


def benchmark(
    asked: TaskOptions,
    place: DeviceOptions,
    model: ModelArgument = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(
            help=f"{SPELLING_HELP} Repeatable; the first is the base of all ratios. Default: autoregressive, adaptive "
            "and the presets, as far as the model supports them."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most new tokens per text.", min=2)] = 96,
    repeats: Annotated[int, typer.Option(help="Rounds over the prompts.", min=1)] = 2,
    pack: PackOption = None,
    output: ReportFile = None,
    as_json: AsJson = False,
) -> None:
    """Time the samplers side by side on your own model and machine, in a few minutes.

    Every call is timed right after a few tokens of the base on the same prompt. The first 3 prompts of the dataset are
    used, or as many as --count says.
    """
    from ..evaluation.benchmark import COLUMNS
    from ..evaluation.benchmark import benchmark as time_samplers
    from ..evaluation.terminal_table import terminal_table
    from ..settings.spelling import named_samplers

    with exit_on_error():
        samplers = named_samplers(list(sampler or DEFAULT))
        check_report_file(output)
    asked.count = PROMPTS if asked.count is None else asked.count
    task = asked.task()
    network, tokenizer = place.load(model)
    if sampler is None:
        samplers = {name: kwargs for name, kwargs in samplers.items() if supports(network, kwargs)}
    prompts = [tokenizer(sample.prompt, return_tensors="pt").input_ids for sample in task.samples]
    with exit_on_error():
        pack_weights(network, pack)
        result = time_samplers(network, prompts, samplers, max_new_tokens, repeats)
    if output is not None:
        write_report(output, result)
    if as_json:
        print(json.dumps(result.to_dict()))
        return
    # Ranges and cache sizes do not fit into 80 columns; they are in the report.
    console = Console()
    headings, rows = result.cells(key for key in COLUMNS if key not in ("speedup_range", "kv_bytes"))
    headings = [heading.replace(" ", "\n").replace("/", "\n/") for heading in headings]
    console.print(terminal_table(headings, rows))
    say(console, f"Linear layers read {result.bandwidth / 1e9:.1f} GB/s. {result.settings['machine']}.")
    if output is not None:
        say(console, f"The table is in {output}.")


def supports(network, kwargs: dict) -> bool:
    """Whether a sampler is defined for the model."""
    try:
        network.decoding_config(**kwargs)
    except ValueError:
        return False
    return True

"""The command `verify`."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .console import ModelArgument, exit_on_error, say
from .options import AsJson, DeviceOptions, Seed
from .report_file import ReportFile, check_report_file, write_report

PROMPTS = (
    "Q: Start at 3 + 2. Last digit?\nA:",
    "def largest(values):",
    "The quick brown fox jumps over the lazy dog. Then the dog gets up, and",
)
STYLES = {"holds": "green", "rounding": "yellow", "broken": "red", "not defined": "dim"}


def verify(
    place: DeviceOptions,
    model: ModelArgument = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to continue; repeatable, at least two.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="New tokens per text.", min=2)] = 24,
    seed: Seed = 0,
    output: ReportFile = None,
    as_json: AsJson = False,
) -> None:
    """Check on your own model, precision and device what the package promises: lossless texts, batches, padding, stops.

    The exit status is 1 if a law is broken. The report names model, machine and versions: attach it to a bug report.
    """
    from ..evaluation.verification import verify as verify_model

    with exit_on_error():
        check_report_file(output)
    network, tokenizer = place.load(model)
    with exit_on_error():
        ids = [tokenizer(text).input_ids for text in prompt or PROMPTS]
        result = verify_model(network, ids, max_new_tokens, seed)
    if output is not None:
        write_report(output, result)
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        table = Table("law", "sampler", "outcome", "detail")
        for verdict in result.verdicts:
            style = STYLES[verdict.outcome]
            table.add_row(verdict.law, verdict.sampler, f"[{style}]{verdict.outcome}[/]", verdict.detail)
        console = Console()
        console.print(table)
        if output is not None:
            say(console, f"The report is in {output}.")
    if result.is_broken:
        raise typer.Exit(1)

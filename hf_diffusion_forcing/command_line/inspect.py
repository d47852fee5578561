"""The command `inspect`."""

import json
import sys
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import ModelArgument, exit_on_error, say
from .insight_table import depth_table, token_table
from .options import DEMO_SEED, AsJson, DeviceOptions, Seed
from .sampler_options import option_of

PROBLEMS = 6
"""Held-out problems to inspect when no prompt is given."""

InspectSettings = make_dataclass(
    "InspectSettings",
    [
        (name, option_of(name), field(default=None))
        for name in ("num_steps", "exit_criterion", "exit_threshold", "state_scale")
    ],
)
"""The settings of the adaptive sampler that decide what a recurrence is and when a position has converged."""


def inspect(
    settings: InspectSettings,
    place: DeviceOptions,
    model: ModelArgument = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text. Repeatable; held-out problems by default.")] = None,
    file: Annotated[
        list[Path] | None, typer.Option(help="A text file, or - for standard input. Repeatable.", allow_dash=True)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Also inspect the model's own continuation.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Texts in a pass.", min=1)] = 8,
    tokens: Annotated[int, typer.Option(help="How many of the tokens that need most to show.", min=0)] = 10,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option(help="A JSON file for all numbers, by depth and by token.")] = None,
    figure: Annotated[Path | None, typer.Option(help="A file for the figure (.png, .svg or .pdf).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what every recurrence does to a text: how states settle, and what tokens need."""
    given = {name: value for name, value in asdict(settings).items() if value is not None}
    output, figure = check_arguments(given, output, figure)
    with exit_on_error():
        texts = read_texts(prompt, file)
    from ..evaluation.insight_summary import findings, report
    from ..evaluation.inspection import inspect_prompts
    from ..files import whole_file, write_file

    network, tokenizer = place.load(model)
    with exit_on_error():
        insight = inspect_prompts(
            network, tokenizer, texts, max_new_tokens, batch_size, seed, progress=not as_json, **given
        )
    call = given | {"texts": len(texts), "max_new_tokens": max_new_tokens, "seed": seed}
    record = report(insight, tokenizer, network, call)
    if output is not None:
        write_file(output, json.dumps(record, indent=1) + "\n")
    if figure is not None:
        from ..visualization import plot_insight

        with whole_file(figure) as partial:
            plot_insight(insight).savefig(partial, format=figure.suffix[1:], dpi=120)
    if as_json:
        print(json.dumps(record))
        return
    console = Console()
    console.print(depth_table(insight))
    if tokens:
        console.print(token_table(insight, tokenizer, tokens))
    for sentence in findings(insight):
        say(console, sentence)


def check_arguments(given: dict, output: Path | None, figure: Path | None) -> tuple[Path | None, Path | None]:
    """Absolute paths of the files to write, after a check of everything that needs no model.

    Raises:
        typer.Exit: something is wrong; the reason is printed.
    """
    from ..files import check_writable_file
    from ..settings.adaptive import AdaptiveConfig
    from ..settings.spelling import check_sampler

    with exit_on_error():
        check_sampler({"sampler": AdaptiveConfig.sampler} | given)
        if figure is not None:
            from ..visualization import matplotlib_names  # noqa: F401  (reports missing packages before the model runs)

            if figure.suffix not in (".png", ".svg", ".pdf"):
                raise ValueError(f"--figure {figure} has no ending that names its format: use .png, .svg or .pdf.")
            figure = check_writable_file(figure)
        return None if output is None else check_writable_file(output), figure


def read_texts(prompts: list[str] | None, files: list[Path] | None) -> list[str]:
    """The texts of --prompt and --file, in this order; held-out problems without any.

    Raises:
        OSError, ValueError: a file cannot be read, is not UTF-8, or is given twice as standard input.
    """
    if not prompts and not files:
        from ..evaluation.problems import problems

        stream = problems(DEMO_SEED, held_out=True)
        return [next(stream).prompt for _ in range(PROBLEMS)]
    texts = list(prompts or [])
    if [str(path) for path in files or []].count("-") > 1:
        raise ValueError("--file - is given twice, but standard input can be read once: leave out one of them.")
    for path in files or []:
        try:
            texts.append(sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"--file {path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    return texts

"""The commands `evaluate` and `diff`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import ModelArgument, fail, load

Dataset = Annotated[
    str,
    typer.Option(
        help="problems, worked, mental or python-source, which come with the package; a .json, .jsonl, .csv or "
        ".parquet file; a folder; or a name on the Hub."
    ),
]
Config = Annotated[str | None, typer.Option(help="The dataset's configuration.")]
Split = Annotated[str | None, typer.Option(help="May be left out where there is one; test[:100] takes a part.")]
Count = Annotated[int | None, typer.Option(help="The first samples only; 100 of what comes with the package.")]
PromptTemplate = Annotated[
    str | None, typer.Option(help=r"Names of columns in braces, as 'Q: {question}\nA:'; {prompt} by default.")
]
ReferenceColumn = Annotated[
    str | None, typer.Option(help="Where the right answers stand; without it outputs are not judged.")
]
AnswerPattern = Annotated[
    str | None, typer.Option(help="Regular expression; its first group is the answer. The whole text by default.")
]
BatchSize = Annotated[int, typer.Option(help="Samples decoded together.", min=1)]
MaxNewTokens = Annotated[int, typer.Option(help="Most tokens of an output.", min=1)]
Stop = Annotated[list[str] | None, typer.Option(help=r"A text that ends an output, as '\nQ:'.")]
Seed = Annotated[int, typer.Option(help="Sample i is decoded with this seed plus i.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights; auto is as they were saved.")]
DeviceMap = Annotated[
    str | None, typer.Option(help="auto (over all devices), cpu, cuda:0, ...; each process's own device by default.")
]


def chosen_task(
    dataset: str,
    config: str | None,
    split: str | None,
    count: int | None,
    prompt_template: str | None,
    reference_column: str | None,
    answer_pattern: str | None,
):
    """The task of a command's options.

    Raises:
        typer.Exit: an option is wrong; the reason is printed.
    """
    from ..evaluation.task import BUNDLED, Task

    shape = {
        "--config": config,
        "--split": split,
        "--prompt-template": prompt_template,
        "--reference-column": reference_column,
        "--answer-pattern": answer_pattern,
    }
    try:
        if dataset in BUNDLED:
            for option, value in shape.items():
                if value is not None:
                    raise ValueError(f"{option} is of datasets; {dataset} brings its own prompts and answers.")
            return Task.bundled(dataset, 100 if count is None else count)
        template = (prompt_template or "{prompt}").replace("\\n", "\n").replace("\\t", "\t")
        return Task.from_dataset(dataset, template, reference_column, answer_pattern, split, config, count)
    except (ValueError, TypeError, ImportError) as error:
        raise fail(str(error)) from error


def stop_strings(stop: list[str] | None) -> dict[str, list[str]]:
    """Keywords of `generate()` from --stop."""
    return {"stop_strings": [text.replace("\\n", "\n") for text in stop]} if stop else {}


def load_on_device(model: str | None, dtype: str, device_map: str | None):
    """Model and tokenizer for one of maybe several processes, each of which has a device.

    Raises:
        typer.Exit: the checkpoint cannot be loaded, or the device map is for one process.
    """
    from ..evaluation.evaluator import process_state

    state = process_state()
    if device_map is not None and state.num_processes > 1:
        raise fail(f"--device-map {device_map} is for one process; {state.num_processes} have a device each.")
    network, tokenizer = load(model, dtype=dtype, device_map=device_map or state.device)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return network, tokenizer


def evaluate(
    model: ModelArgument = None,
    dataset: Dataset = "problems",
    config: Config = None,
    split: Split = None,
    count: Count = None,
    prompt_template: PromptTemplate = None,
    reference_column: ReferenceColumn = None,
    answer_pattern: AnswerPattern = None,
    sampler: Annotated[
        list[str],
        typer.Option(
            help="NAME or NAME:setting=value,setting=value, as diffusion_forcing:preset=fast,wavefront=16; may be "
            "given several times, the first is the baseline."
        ),
    ] = ("autoregressive", "diffusion_forcing", "speculative_wavefront"),
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = 160,
    stop: Stop = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, typer.Option(help="A folder for all results; the same command goes on with a run in it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget a run that is in the folder.")] = False,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Decode a dataset with several samplers: accuracy, speed, work and agreement of each."""
    from ..evaluation.evaluator import evaluate_samplers, process_state
    from ..evaluation.journal import check_writable
    from ..settings.spelling import named_samplers

    try:
        samplers = named_samplers(list(sampler))
        if output is not None:
            check_writable(output)
    except (ValueError, TypeError) as error:
        raise fail(str(error)) from error
    task = chosen_task(dataset, config, split, count, prompt_template, reference_column, answer_pattern)
    network, tokenizer = load_on_device(model, dtype, device_map)
    try:
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
    except (ValueError, TypeError, ImportError, OSError) as error:
        raise fail(str(error)) from error
    if not process_state().is_main_process:
        return
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        console = Console()
        console.print(result.table())
        if output is not None:
            console.print(f"Results are in {output}.", highlight=False, markup=False, soft_wrap=True)
    for warning in result.warnings:
        Console(stderr=True, soft_wrap=True).print(f"warning: {warning}", style="yellow", highlight=False, markup=False)


def diff(
    model: ModelArgument = None,
    dataset: Dataset = "problems",
    config: Config = None,
    split: Split = None,
    count: Count = None,
    prompt_template: PromptTemplate = None,
    reference_column: ReferenceColumn = None,
    answer_pattern: AnswerPattern = None,
    baseline: Annotated[str, typer.Option(help="The sampler that is compared with.")] = "autoregressive",
    sampler: Annotated[
        str, typer.Option(help="NAME or NAME:setting=value,setting=value.")
    ] = "diffusion_forcing:preset=fast",
    batch_size: BatchSize = 8,
    max_new_tokens: MaxNewTokens = 160,
    seed: Seed = 0,
    examples: Annotated[int, typer.Option(help="How many differences to show.", min=0)] = 5,
    output: Annotated[Path | None, typer.Option(help="A folder for the report, its data and a figure.")] = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the report.")] = False,
) -> None:
    """Where two samplers' texts part: at which tokens, how sure the model was, and whether answers survive."""
    from ..evaluation.divergence import compare_samplers
    from ..evaluation.journal import check_writable
    from ..settings.spelling import parse_sampler

    try:
        for text in (baseline, sampler):
            parse_sampler(text)
        if output is not None:
            check_writable(output)
    except (ValueError, TypeError) as error:
        raise fail(str(error)) from error
    task = chosen_task(dataset, config, split, count, prompt_template, reference_column, answer_pattern)
    network, tokenizer = load_on_device(model, dtype, device_map)
    try:
        result = compare_samplers(
            network, tokenizer, task, baseline, sampler, batch_size, max_new_tokens, seed, progress=not as_json
        )
        if output is not None:
            result.save(output, examples)
    except (ValueError, TypeError, OSError) as error:
        raise fail(str(error)) from error
    print(json.dumps(result.to_dict()) if as_json else result.to_markdown(examples))

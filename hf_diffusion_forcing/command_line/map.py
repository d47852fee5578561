"""The command `map`."""

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .console import exit_on_error, say
from .options import AsJson, DeviceOptions, MaxNewTokens, Stop, stop_strings
from .sampler_options import DEFAULT_SAMPLER, SPELLING_HELP, PlainSettings, chosen_sampler


@dataclass
class PromptOptions:
    """The options that define the rows and their prompts."""

    config: Annotated[str | None, typer.Option(help="The dataset's configuration.")] = None
    split: Annotated[str | None, typer.Option(help="Optional if there is only one; test[:100] takes a part.")] = None
    count: Annotated[int | None, typer.Option(help="Use only the first rows.", min=1)] = None
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompts. Default: prompt.")] = None
    prompt_template: Annotated[
        str | None, typer.Option(help=r"Instead: column names in braces, as in 'Q: {question}\nA:'.")
    ] = None
    chat_column: Annotated[
        str | None,
        typer.Option(help="Instead: column of messages, or of single questions, for the tokenizer's chat template."),
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Keywords of `map_dataset`."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        if self.prompt_template is not None:
            given["prompt_template"] = self.prompt_template.replace("\\n", "\n").replace("\\t", "\t")
        return given


@dataclass
class OutputOptions:
    """The options for the columns that are written."""

    output_column: Annotated[
        str, typer.Option(help="Column of the texts; the other new columns begin with its name.")
    ] = "output"
    keep_seed: Annotated[bool, typer.Option("--keep-seed", help="Also write each row's seed.")] = False
    keep_logprobs: Annotated[
        bool, typer.Option("--keep-logprobs", help="Also write the logarithm of each token's probability.")
    ] = False

    def keywords(self) -> dict[str, Any]:
        """Keywords of `map_dataset`."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass
class SamplingOptions:
    """Keywords of `generate()` that are no settings of a sampler; those of the checkpoint if they are not given."""

    do_sample: Annotated[bool | None, typer.Option(help="Sample, or take the likeliest token.")] = None
    temperature: Annotated[float | None, typer.Option(help="Of sampling.")] = None
    top_p: Annotated[float | None, typer.Option(help="Of sampling.")] = None
    top_k: Annotated[int | None, typer.Option(help="Of sampling.")] = None
    prefill_chunk_size: Annotated[
        int | None, typer.Option(help="Positions of a prompt to read at once; all by default.", min=1)
    ] = None

    def keywords(self, samples: bool | None) -> dict[str, Any]:
        """Those given, as keywords of `generate()`.

        Args:
            samples: whether the checkpoint samples by default.

        Raises:
            ValueError: an option of sampling without sampling, which transformers would ignore.
        """
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        given = {name: value for name, value in given.items() if value is not None}
        if not given.get("do_sample", samples):
            for name in ("temperature", "top_p", "top_k"):
                if name in given:
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(
                        f"{option} {given[name]} applies to sampling only: add --do-sample, or leave it out."
                    )
        return given


@dataclass
class BatchingOptions:
    """The limits of continuous batching. They change the speed, not the texts."""

    max_batch_size: Annotated[int | None, typer.Option(help="Rows decoded at a time. Default: 32.", min=1)] = None
    max_batch_tokens: Annotated[
        int | None, typer.Option(help="Positions of a pass; chosen by measuring this machine by default.", min=1)
    ] = None
    max_cache_bytes: Annotated[
        int | None, typer.Option(help="Bytes of keys and values; half of the free memory by default.", min=1)
    ] = None
    prefix_reuse: Annotated[
        bool, typer.Option(help="Read the beginnings that prompts share once, where the settings allow it.")
    ] = True

    def keywords(self) -> dict[str, Any]:
        """Those given, as keywords of `init_continuous_batching()`."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in given.items() if value is not None}


def map(
    rows: PromptOptions,
    columns: OutputOptions,
    sampling: SamplingOptions,
    settings: PlainSettings,
    batching: BatchingOptions,
    place: DeviceOptions,
    dataset: Annotated[
        str,
        typer.Argument(help="A .json, .jsonl, .csv or .parquet file, a folder, or a name on the Hub."),
    ] = ...,
    output: Annotated[Path, typer.Option(help="A .jsonl or .parquet file.")] = ...,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint folder or Hub id; the bundled checkpoint by default.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help=f"{SPELLING_HELP} Default: the checkpoint's own, or {DEFAULT_SAMPLER}.")
    ] = None,
    max_new_tokens: MaxNewTokens = 160,
    stop: Stop = None,
    seed: Annotated[int, typer.Option(help="Row i is decoded with this seed plus i.", min=0)] = 0,
    same_seed: Annotated[
        bool, typer.Option("--same-seed", help="Decode every row with the same seed, so that prefixes can be shared.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End at the first row with an error.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Discard an earlier job, and replace the output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Continue the prompt of every row of a dataset. An interrupted job is resumed by the same command."""
    keywords = settings.given
    if sampler is not None or "sampler_preset" in keywords:
        keywords = chosen_sampler(sampler, settings)
    with exit_on_error():
        from ..jobs import disable_progress_bars
        from ..jobs.map_dataset import map_dataset
        from ..jobs.output_file import OutputFile

        OutputFile.of(output, columns.output_column, columns.keep_seed, columns.keep_logprobs)
    network, tokenizer = place.load(model)
    if "sampler" not in keywords and not network.generation_config.names_sampler:
        keywords["sampler"] = DEFAULT_SAMPLER
    keywords |= rows.keywords() | columns.keywords() | batching.keywords() | stop_strings(stop)
    choices = {"max_new_tokens": max_new_tokens, "seed": seed, "same_seed": same_seed, "strict": strict}
    with exit_on_error(), interruptible():
        keywords |= sampling.keywords(network.generation_config.do_sample)
        if quiet or not sys.stderr.isatty():
            disable_progress_bars()
        result = map_dataset(
            network,
            tokenizer,
            dataset,
            output,
            overwrite=overwrite,
            progress=False if quiet else None,
            **choices,
            **keywords,
        )
    if result is not None:
        print_result(result, f"{columns.output_column}_error", as_json, quiet)


def print_result(result: Any, error_column: str, as_json: bool, quiet: bool) -> None:
    """Say what was done (`hf_diffusion_forcing.jobs.map_dataset.MapResult`), and warn about rows with an error."""
    if as_json:
        print(json.dumps(result.to_dict()))
    elif not quiet:
        speed = f"{result.tokens:,} tokens in {result.seconds:.1f} s ({result.tokens_per_second:.1f} tokens/s)"
        say(Console(), f"{result.rows} rows are in {result.output}. {result.decoded} were decoded now: {speed}.")
    if result.failed:
        warn(f"warning: {result.failed} rows have an error, see {error_column}. The same command tries them again.")


def warn(message: str) -> None:
    """Print a line on standard error."""
    Console(stderr=True, soft_wrap=True).print(message, style="yellow", highlight=False, markup=False)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM interrupt like Ctrl+C; say how to resume, and exit with the status of a shell for the signal."""
    got = signal.SIGINT

    def interrupt(number: int, frame: Any) -> None:
        nonlocal got
        # A launcher may send the signal again while the engine stops.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        got = signal.Signals(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as stop:
        warn(str(stop) or "Interrupted.")
        raise typer.Exit(128 + got) from stop
    finally:
        signal.signal(signal.SIGTERM, before)

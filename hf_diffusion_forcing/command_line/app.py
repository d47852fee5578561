"""The command `hf-diffusion-forcing`: see diffusion forcing happen, and compare it with autoregression."""

import json
import time
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..settings.presets import preset_sampler
from .console import ModelArgument, fail, load
from .evaluate import diff, evaluate
from .hub import export, push
from .lm_eval import lm_eval
from .options import (
    DEMO_SEED,
    DraftDepth,
    ExitCriterion,
    ExitThreshold,
    InnerRecurrence,
    MaxNewTokens,
    NumSteps,
    Preset,
    Wavefront,
    given,
)
from .report import report
from .tune import tune

app = typer.Typer(add_completion=False, help="Decode recurrent-depth language models by diffusion forcing.")


def percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def comparison_table(title: str, runs, problems=None, answers=None) -> Table:
    """One row a run against the first: right answers (when known), tokens, core passes, time, equal tokens."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = ["sampler", "right", "tokens", "core\npasses", "seconds", "tokens\n/s", "speedup", "equal"]
    for name in columns if problems else columns[:1] + columns[2:]:
        table.add_column(name, justify="left" if name == "sampler" else "right", no_wrap=True)
    base = runs[0]
    for position, run in enumerate(runs):
        cells = [
            run.name,
            str(run.tokens),
            str(run.core_passes),
            f"{sum(run.seconds):.2f}",
            f"{run.tokens_per_second:.0f}",
            f"{run.tokens_per_second / base.tokens_per_second:.1f}x",
            percent(run.equal_share(base)),
        ]
        if problems:
            right = sum(p.is_solved_by(a) for p, a in zip(problems, answers[position], strict=True))
            cells.insert(1, f"{right}/{len(problems)}")
        table.add_row(*cells)
    return table


def show_live(console: Console, model, tokenizer, problem, **kwargs) -> None:
    """Print a problem and its answer, drafts in yellow while they are refined when the output is a terminal."""
    from transformers import TextDiffusionStreamer

    console.print(problem.prompt.removesuffix("A:").strip(), style="bold", highlight=False)
    inputs = tokenizer(problem.prompt, return_tensors="pt")
    streamer = None
    if console.is_terminal:
        streamer = TextDiffusionStreamer(tokenizer, skip_prompt=True, sleep_time=0.02, skip_special_tokens=True)
    ids = model.generate(**inputs, streamer=streamer, **kwargs)
    if streamer is None:
        text = tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        console.print("A:" + text, highlight=False, soft_wrap=True)
    console.print()


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Without a subcommand: show the bundled checkpoint decode held-out problems, then compare."""
    if context.invoked_subcommand is None:
        demo()


def demo(shown: int = 2, compared: int = 6) -> None:
    """The main job in under a minute: `shown` problems live, then `compared` problems timed with every sampler."""
    from ..evaluation.measure import Run, compare
    from ..evaluation.problems import problems

    console = Console()
    began = time.perf_counter()
    model, tokenizer = load(None)
    forcing = {
        "sampler": "diffusion_forcing",
        "wavefront": 32,
        "exit_threshold": 0.03,
        "inner_recurrence": 1,
        "seed": 0,
    }
    stream = problems(DEMO_SEED, held_out=True)
    chosen = [next(stream) for _ in range(compared)]
    parameters = sum(p.numel() for p in model.parameters())
    console.print(
        f"A recurrent-depth model of {parameters / 1e6:.1f}M parameters, {model.config.mean_recurrence} recurrences a "
        "token, on problems it was not trained on.",
        highlight=False,
    )
    if console.is_terminal:
        console.print("Yellow tokens are drafts: refined together, final once their latent state has settled.\n")
    for problem in [p for p in chosen if p.kind == "worked"][:shown]:
        show_live(console, model, tokenizer, problem, **forcing)

    prompts = [tokenizer(p.prompt, return_tensors="pt").input_ids for p in chosen]
    runs = [
        Run("autoregressive", {"sampler": "autoregressive", "seed": 0}),
        Run("diffusion_forcing r'=4", forcing | {"inner_recurrence": 4}),
        Run("diffusion_forcing r'=1", forcing),
        Run("speculative_wavefront", {"sampler_preset": "lossless", "seed": 0}),
    ]
    with console.status("Comparing with autoregression ..."):
        compare(model, prompts, runs)
    answers = [tokenizer.batch_decode(run.sequences, skip_special_tokens=True) for run in runs]
    console.print(comparison_table("The same problems, the same model", runs, chosen, answers))
    console.print(
        "r' is the number of core passes in a tick. speculative_wavefront gives autoregression's text by design.",
        highlight=False,
    )
    console.print(f"Done in {time.perf_counter() - began:.0f} seconds.", highlight=False)


@app.command()
def generate(
    model: ModelArgument = None,
    prompt: Annotated[str, typer.Option(help="The text to continue.")] = ...,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="autoregressive, adaptive, diffusion_forcing (the default without a preset), speculative_wavefront."
        ),
    ] = None,
    preset: Preset = None,
    wavefront: Wavefront = None,
    exit_criterion: ExitCriterion = None,
    exit_threshold: ExitThreshold = None,
    inner_recurrence: InnerRecurrence = None,
    draft_depth: DraftDepth = None,
    num_steps: NumSteps = None,
    max_new_tokens: MaxNewTokens = 160,
    seed: Annotated[int, typer.Option(help="Seed of the latent states.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Continue a prompt; drafts are shown while they are refined when the output is a terminal."""
    from transformers import TextDiffusionStreamer

    console = Console()
    network, tokenizer = load(model)
    if sampler is None and preset is None:
        sampler = "diffusion_forcing"
    kwargs = {"sampler": sampler, "seed": seed, "max_new_tokens": max_new_tokens}
    kwargs |= given(
        sampler_preset=preset,
        num_steps=num_steps,
        wavefront=wavefront,
        exit_criterion=exit_criterion,
        exit_threshold=exit_threshold,
        inner_recurrence=inner_recurrence,
        draft_depth=draft_depth,
    )
    live = console.is_terminal and not as_json
    streamer = TextDiffusionStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True) if live else None
    inputs = tokenizer(prompt, return_tensors="pt")
    began = time.perf_counter()
    try:
        output = network.generate(**inputs, **kwargs, streamer=streamer, return_dict_in_generate=True)
    except (ValueError, TypeError) as error:
        raise fail(str(error)) from error
    seconds = time.perf_counter() - began
    new = output.sequences[0, inputs.input_ids.shape[1] :]
    text = tokenizer.decode(new, skip_special_tokens=True)
    if as_json:
        stats = getattr(output, "stats", None)
        record = {"prompt": prompt, "text": text, "tokens": len(new), "seconds": seconds, "settings": kwargs}
        print(json.dumps(record | {"stats": stats.to_dict() if stats else None}))
    elif not live:
        print(text)


@app.command()
def compare(
    model: ModelArgument = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A text to continue; may be given several times.")] = None,
    preset: Preset = None,
    wavefront: Wavefront = None,
    exit_criterion: ExitCriterion = None,
    exit_threshold: ExitThreshold = None,
    inner_recurrence: InnerRecurrence = None,
    num_steps: NumSteps = None,
    max_new_tokens: MaxNewTokens = 160,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Time the parallel samplers against autoregression on the same prompts (held-out problems by default)."""
    from ..evaluation.measure import Run
    from ..evaluation.measure import compare as compare_runs
    from ..evaluation.problems import problems

    console = Console()
    network, tokenizer = load(model)
    chosen = None
    if prompt is None:
        stream = problems(DEMO_SEED, held_out=True)
        chosen = [next(stream) for _ in range(6)]
    prompts = [tokenizer(text, return_tensors="pt").input_ids for text in prompt or [p.prompt for p in chosen]]
    common = {"seed": 0} | given(num_steps=num_steps)
    forcing = given(
        wavefront=wavefront,
        exit_criterion=exit_criterion,
        exit_threshold=exit_threshold,
        inner_recurrence=inner_recurrence,
    )
    settings = {"autoregressive": {}, "diffusion_forcing": forcing, "speculative_wavefront": {}}
    if num_steps == 1:
        del settings["speculative_wavefront"]  # one recurrence leaves none to draft with
    try:
        if preset is not None:
            settings[preset_sampler(preset)]["sampler_preset"] = preset
        runs = [Run(name, common | {"sampler": name} | own) for name, own in settings.items()]
        compare_runs(network, prompts, runs, max_new_tokens=max_new_tokens)
    except (ValueError, TypeError) as error:
        raise fail(str(error)) from error
    answers = [tokenizer.batch_decode(run.sequences, skip_special_tokens=True) for run in runs]
    if as_json:
        record = {
            run.name: {
                "settings": run.kwargs,
                "tokens": run.tokens,
                "core_passes": run.core_passes,
                "seconds": sum(run.seconds),
                "tokens_per_second": run.tokens_per_second,
                "speedup": run.tokens_per_second / runs[0].tokens_per_second,
                "equal_share": run.equal_share(runs[0]),
                "texts": texts,
            }
            for run, texts in zip(runs, answers, strict=True)
        }
        print(json.dumps(record))
    else:
        console.print(comparison_table("The same prompts, the same model", runs, chosen, answers))


@app.command()
def serve(
    model: ModelArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8000,
    sampler: Annotated[
        str | None, typer.Option(help="By default the checkpoint's own, or diffusion_forcing where it has none.")
    ] = None,
    wavefront: Wavefront = None,
    exit_threshold: ExitThreshold = None,
    inner_recurrence: InnerRecurrence = None,
    num_steps: NumSteps = None,
    seed: Annotated[int | None, typer.Option(help="Seed where a request has none; drawn anew by default.")] = None,
    device: Annotated[str, typer.Option(help="Device of the model: auto, cpu, cuda:0, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="Type of the weights; auto is as they were saved.")] = "auto",
    enable_cors: Annotated[bool, typer.Option(help="Let web pages of any origin send requests.")] = False,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], typer.Option(help="Of the server's own messages.")
    ] = "warning",
) -> None:
    """Answer OpenAI clients: chat completions, completions and responses, streamed or not."""
    try:
        from ..serving.server import choose_sampler
        from ..serving.server import serve as answer
    except ImportError as error:
        raise fail(str(error)) from error

    network, tokenizer = load(model, device_map=device, dtype=dtype)
    settings = given(
        wavefront=wavefront,
        exit_threshold=exit_threshold,
        inner_recurrence=inner_recurrence,
        num_steps=num_steps,
        seed=seed,
    )
    try:
        choose_sampler(network, sampler, **settings)
    except (ValueError, TypeError) as error:
        raise fail(str(error)) from error
    name = model or "bundled"
    config = network.generation_config
    Console().print(
        f"Serving {name} by {config.sampler} {config.sampler_config} at http://{host}:{port}/v1 (Ctrl+C to stop).",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    answer(network, tokenizer, name, host, port, enable_cors, log_level)


app.command()(evaluate)
app.command()(diff)
app.command()(export)
app.command()(push)
app.command()(report)
app.command()(tune)
app.command(
    "lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False
)(lm_eval)

if __name__ == "__main__":
    app()

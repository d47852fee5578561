"""The command `report`."""

import platform
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .console import ModelArgument, fail, load
from .options import (
    DEMO_SEED,
    DraftDepth,
    ExitCriterion,
    ExitThreshold,
    MaxNewTokens,
    NumSteps,
    Preset,
    Wavefront,
    given,
)

REPEATS = 3
"""Calls of every sampler in the table of speeds."""


def report(
    model: ModelArgument = None,
    prompt: Annotated[str | None, typer.Option(help="The text to continue; a held-out problem by default.")] = None,
    html: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    sampler: Annotated[
        str | None,
        typer.Option(help="adaptive, diffusion_forcing (the default without a preset), speculative_wavefront."),
    ] = None,
    preset: Preset = None,
    wavefront: Wavefront = None,
    exit_criterion: ExitCriterion = None,
    exit_threshold: ExitThreshold = None,
    inner_recurrence: Annotated[
        int | None, typer.Option(help="Core passes in a tick (1 without a preset, to see every recurrence).")
    ] = None,
    draft_depth: DraftDepth = None,
    num_steps: NumSteps = None,
    max_new_tokens: MaxNewTokens = 160,
    seed: Annotated[int, typer.Option(help="Seed of the latent states.")] = 0,
) -> None:
    """Write one HTML page about a text: how it came about tick by tick, its pictures, and speed side by side."""
    import torch

    from ..evaluation.measure import Run, compare
    from ..evaluation.problems import problems
    from ..visualization.report import Report, check_writable

    try:
        from ..visualization import figures  # noqa: F401  (what is missing is said before the model runs)

        html = check_writable(html)
    except (ImportError, ValueError, OSError) as error:
        raise fail(str(error)) from error
    console = Console()
    network, tokenizer = load(model)
    if prompt is None:
        prompt = next(problems(DEMO_SEED, held_out=True, kind="worked")).prompt
    if sampler is None and preset is None:
        sampler = "diffusion_forcing" if network.has_injected_embedding else "speculative_wavefront"
    if sampler == "diffusion_forcing" and preset is None and inner_recurrence is None:
        inner_recurrence = 1
    common = {"seed": seed} | given(num_steps=num_steps)
    settings = given(
        sampler=sampler,
        sampler_preset=preset,
        wavefront=wavefront,
        exit_criterion=exit_criterion,
        exit_threshold=exit_threshold,
        inner_recurrence=inner_recurrence,
        draft_depth=draft_depth,
    )
    inputs = tokenizer(prompt, return_tensors="pt")
    call = {"max_new_tokens": max_new_tokens}
    try:
        with console.status("Decoding with a trace ..."):
            output = network.generate(
                **inputs, **common, **settings, **call, return_trace="latents", return_dict_in_generate=True
            )
        trace, stats = output.trace, output.stats
        if not trace.waves:
            raise ValueError("The text ended at its first token, so there is nothing to show: give another prompt.")
        runs = [Run("autoregressive", common | {"sampler": "autoregressive"})]
        runs.append(Run(f"{preset or trace.sampler} (this page)", common | settings))
        if trace.sampler != "speculative_wavefront" and trace.budget > 1:
            runs.append(Run("speculative_wavefront", common | {"sampler": "speculative_wavefront"}))
        with console.status("Measuring the samplers side by side ..."):
            compare(network, [inputs.input_ids] * REPEATS, runs, **call)
    except (ValueError, TypeError) as error:
        raise fail(str(error)) from error

    parameters = sum(parameter.numel() for parameter in network.parameters())
    shown = {name: value for name, value in settings.items() if name != "sampler"} | given(num_steps=num_steps)
    facts = {
        "model": f"{model or 'bundled'}, {parameters / 1e6:.1f}M parameters",
        "sampler": trace.sampler,
        "settings": ", ".join(f"{name}={value}" for name, value in shown.items()) or "its defaults",
        "seed": str(seed),
        "new tokens": str(stats.tokens_committed[0]),
        "ticks": f"{stats.ticks} ({stats.core_passes} core passes)",
        "tokens a tick": f"{stats.tokens_per_forward:.2f}",
        "recurrences a token": f"{stats.recurrences_per_token:.1f} (budget {trace.budget})",
    }
    machine = str(network.device)
    if network.device.type == "cpu":
        threads = torch.get_num_threads()
        machine = f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
    dtype = str(network.dtype).removeprefix("torch.")
    measured = f"Means of {REPEATS} calls, interleaved, on {machine}, {dtype}, {date.today().isoformat()}."
    page = Report(
        name=model or "the bundled checkpoint",
        facts=list(facts.items()),
        tokenizer=tokenizer,
        prompt_ids=inputs.input_ids[0].tolist(),
        trace=trace,
        runs=runs,
        measured=measured,
    )
    try:
        page.save(html)
    except (ValueError, OSError) as error:
        raise fail(str(error)) from error
    size = html.stat().st_size / 1024
    console.print(f"Wrote {html} ({size:.0f} KiB).", highlight=False, markup=False, soft_wrap=True)

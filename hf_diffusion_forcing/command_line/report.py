"""The command `report`."""

import platform
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..settings.sampler_config import SAMPLER_CONFIGS
from .console import ModelArgument, exit_on_error, load, say
from .options import DEMO_SEED, Dtype, MaxNewTokens, Seed
from .sampler_options import DEFAULT_SAMPLER, LOSSLESS_SAMPLER, PlainSettings, Sampler, chosen_sampler

REPEATS = 3
"""Timed calls of every sampler in the speed table."""


def report(
    settings: PlainSettings,
    model: ModelArgument = None,
    prompt: Annotated[str | None, typer.Option(help="The text to continue; a held-out problem by default.")] = None,
    html: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
    sampler: Sampler = None,
    max_new_tokens: MaxNewTokens = 160,
    dtype: Dtype = "auto",
    seed: Seed = 0,
) -> None:
    """Write one HTML page about a text: every tick of its decoding, figures, and a speed comparison.

    Without a preset, inner_recurrence is 1 by default, to show every recurrence.
    """
    named = sampler is not None or settings.preset is not None
    kwargs = chosen_sampler(sampler, settings)
    from ..evaluation.problems import problems
    from ..files import check_writable_file
    from ..generation.samplers import SAMPLERS
    from ..visualization.report import Report

    with exit_on_error():
        from ..visualization import matplotlib_names  # noqa: F401  (reports missing packages before the model runs)

        html = check_writable_file(html)
    console = Console()
    network, tokenizer = load(model, dtype)
    if not named and SAMPLERS[DEFAULT_SAMPLER].needs_injected_embedding and not network.has_injected_embedding:
        kwargs = chosen_sampler(None, settings, LOSSLESS_SAMPLER)
    if "sampler_preset" not in kwargs and "inner_recurrence" in SAMPLER_CONFIGS[kwargs["sampler"]].fields():
        kwargs = {"inner_recurrence": 1} | kwargs
    if prompt is None:
        prompt = next(problems(DEMO_SEED, held_out=True, kind="worked")).prompt
    inputs = tokenizer(prompt, return_tensors="pt")
    call = {"max_new_tokens": max_new_tokens}
    with exit_on_error():
        with console.status("Decoding with a trace ..."):
            output = network.generate(
                **inputs, seed=seed, **kwargs, **call, return_trace="latents", return_dict_in_generate=True
            )
        if not output.trace.waves:
            raise ValueError("The text ended at its first token, so there is nothing to show: pass another prompt.")
        with console.status("Timing the samplers ..."):
            runs = side_by_side(network, inputs.input_ids, kwargs, {"seed": seed}, output.trace, call)
        Report(
            name=model or "the bundled checkpoint",
            facts=facts(network, model, kwargs, seed, output),
            tokenizer=tokenizer,
            prompt_ids=inputs.input_ids[0].tolist(),
            trace=output.trace,
            runs=runs,
            measured=measured(network),
        ).save(html)
    size = html.stat().st_size / 1024
    say(console, f"Wrote {html} ({size:.0f} KiB).")


def side_by_side(network, input_ids, kwargs: dict[str, Any], common: dict[str, Any], trace, call: dict) -> list:
    """Time the page's sampler and autoregression, and the lossless sampler if the page's is not lossless."""
    from ..evaluation.runs import Run, compare
    from ..generation.samplers import SAMPLERS

    # num_steps applies to all of them.
    common = common | {name: kwargs[name] for name in ("num_steps",) if name in kwargs}
    runs = [
        Run("autoregressive", common | {"sampler": "autoregressive"}),
        Run(f"{kwargs.get('sampler_preset') or trace.sampler} (this page)", common | kwargs),
    ]
    if not SAMPLERS[trace.sampler].is_lossless and trace.budget > 1:
        runs.append(Run(LOSSLESS_SAMPLER, common | {"sampler": LOSSLESS_SAMPLER}))
    return compare(network, [input_ids] * REPEATS, runs, **call)


def facts(network, model: str | None, kwargs: dict[str, Any], seed: int, output) -> list[tuple[str, str]]:
    """The page's facts about the model and the call."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    shown = {name: value for name, value in kwargs.items() if name != "sampler"}
    trace, stats = output.trace, output.stats
    return [
        ("model", f"{model or 'bundled'}, {parameters / 1e6:.1f}M parameters"),
        ("sampler", trace.sampler),
        ("settings", ", ".join(f"{name}={value}" for name, value in shown.items()) or "its defaults"),
        ("seed", str(seed)),
        ("new tokens", str(stats.tokens_committed[0])),
        ("ticks", f"{stats.ticks} ({stats.core_passes} core passes)"),
        ("tokens per tick", f"{stats.tokens_per_forward:.2f}"),
        ("recurrences per token", f"{stats.recurrences_per_token:.1f} (budget {trace.budget})"),
    ]


def measured(network) -> str:
    """How and on what machine the speeds were measured."""
    import torch

    machine = str(network.device)
    if network.device.type == "cpu":
        threads = torch.get_num_threads()
        machine = f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
    dtype = str(network.dtype).removeprefix("torch.")
    return f"Means of {REPEATS} calls, interleaved, on {machine}, {dtype}, {date.today().isoformat()}."

"""Measure what `hf-diffusion-forcing estimate` rests on, and compare its estimates with this machine's own ticks.

    python scripts/measure_estimate.py --part waves
    python scripts/measure_estimate.py --part ticks
    python scripts/measure_estimate.py --part devices

`waves` counts the passes of the two trained checkpoints, and writes wave_statistics.json into the package.
`ticks` times the bundled checkpoint, widened, and writes docs/benchmarks/estimate.json and estimate.md; it wants an
otherwise idle machine. `devices` calculates the tables of docs/estimate.md.
"""

import json
import platform
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from measured_parts import CHECKPOINTS, ROOT, signature
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing.evaluation.benchmark import benchmark
from hf_diffusion_forcing.evaluation.devices import PUBLISHED, Device
from hf_diffusion_forcing.evaluation.estimate import Estimate, estimate
from hf_diffusion_forcing.evaluation.markdown import markdown_table
from hf_diffusion_forcing.evaluation.model_shape import ModelShape
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.published_models import config_of
from hf_diffusion_forcing.evaluation.python_source import source_prompts
from hf_diffusion_forcing.evaluation.roofline import cost_curve_of
from hf_diffusion_forcing.evaluation.this_device import this_device
from hf_diffusion_forcing.evaluation.wave_statistics import SAMPLERS, STORED, measure_all_waves, stored_waves
from hf_diffusion_forcing.evaluation.widening import widen
from hf_diffusion_forcing.files import write_file
from hf_diffusion_forcing.generation.cost_curve import WIDTHS, cost_curve

TARGET = ROOT / "docs" / "benchmarks" / "estimate.json"
PAGE = ROOT / "docs" / "estimate.md"
TEXTS = {"problems": "problems", "python-source": "Python source"}
"""Names of the statistics, and of the checkpoints in `measured_parts`."""
DEPTHS = (2, 4, 8, 16, 32)
FACTORS = (4, 8)
HELD_OUT_SEED = 2026
SHORT = {"diffusion_forcing:preset=fast": "fast", "speculative_wavefront": "lossless"}
"""Samplers by the names of the other tables."""
BEGIN, END = "<!-- calculated by scripts/measure_estimate.py --part devices -->\n", "<!-- end -->\n"
SHOWN = {"huginn-0125": 1, "ouro-2.6b": 1, "looped-70b": 8}
"""The models of docs/estimate.md, and the devices that share each."""


def load(path: str | Path):
    """Load a checkpoint in float32, without decoding heads: published models have none."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.decoding_heads = None
    return model, AutoTokenizer.from_pretrained(path)


def prompts_of(text: str, tokenizer, count: int) -> list[torch.Tensor]:
    """Return held-out prompts, int64 [1, length] each."""
    if text == "python-source":
        return source_prompts(tokenizer, count, 128, HELD_OUT_SEED)
    chosen = islice(problems(HELD_OUT_SEED, held_out=True, kind="worked"), count)
    return [tokenizer(problem.prompt, return_tensors="pt").input_ids for problem in chosen]


def measure_statistics(count: int, max_new_tokens: int) -> None:
    """Count the passes of both checkpoints at every depth, and write them into the package."""
    texts: dict[str, Any] = {}
    for text, checkpoint in TEXTS.items():
        model, tokenizer = load(CHECKPOINTS[checkpoint])
        prompts, texts[text] = prompts_of(text, tokenizer, count), {}
        for depth in tqdm(DEPTHS, desc=text):
            waves = measure_all_waves(model, prompts, max_new_tokens, depth)
            texts[text][str(depth)] = {name: wave.to_dict() for name, wave in waves.items()}
    record = {
        "date": date.today().isoformat(),
        "command": f"scripts/measure_estimate.py --part waves --count {count} --max-new-tokens {max_new_tokens}",
        "texts": texts,
    }
    write_file(STORED, json.dumps(record, indent=1) + "\n")


def compare_ticks(model, narrow, tokenizer, device: Device, count: int, max_new_tokens: int) -> dict[str, Any]:
    """Return estimated and measured times: of ticks by width, and of every sampler.

    Args:
        model: what is timed.
        narrow: computes the same texts; its passes are counted.
    """
    shape = ModelShape.of_model(model, "the widened checkpoint")
    guess, measured = cost_curve_of(shape, device), cost_curve(model, 1, model.device)
    ticks = [
        {
            "positions": width,
            "measured": measured.seconds_per_tick(width, 1),
            "estimated": guess.seconds_per_tick(width, 1),
        }
        for width in WIDTHS
    ]
    prompts = prompts_of("problems", tokenizer, count)
    waves = measure_all_waves(narrow, prompts, max_new_tokens)
    context = prompts[0].shape[1] + max_new_tokens // 2
    rows = estimate(shape, device, waves, "the checkpoint's own", context=context).rows
    timed = benchmark(model, prompts, SAMPLERS, max_new_tokens, 1, progress=False).rows
    decoding = [
        {"sampler": row["sampler"]}
        | {f"estimated_{key}": row[key] for key in ("tokens_per_second", "speedup")}
        | {f"measured_{key}": each[key] for key in ("tokens_per_second", "speedup")}
        for row, each in zip(rows, timed, strict=True)
    ]
    return {"parameters": shape.parameters, "context": context, "ticks": ticks, "decoding": decoding}


def measure_ticks(checkpoint: Path | None, count: int, max_new_tokens: int) -> None:
    """Time the checkpoint, or the bundled one widened by each factor, and write the record and its page."""
    device = this_device()
    narrow, tokenizer = load(checkpoint or CHECKPOINTS["problems"])
    models = {f"Widened {k} times": lambda k=k: widen(narrow, k) for k in FACTORS}
    if checkpoint is not None:
        models = {checkpoint.name: lambda: narrow}
    given = f" --checkpoint {checkpoint.name}" if checkpoint else ""
    record = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}",
        "command": f"scripts/measure_estimate.py --part ticks{given} --count {count} --max-new-tokens {max_new_tokens}",
        "device": vars(device),
        "models": {
            name: compare_ticks(made(), narrow, tokenizer, device, count, max_new_tokens)
            for name, made in models.items()
        },
    }
    write_file(TARGET, json.dumps(record, indent=1) + "\n")
    write_file(TARGET.with_suffix(".md"), ticks_page(record))
    typer.echo(ticks_page(record))


def error(estimated: float, measured: float) -> str:
    """Return how far an estimate is off, in per cent of what was measured."""
    return f"{100 * (estimated / measured - 1):+.0f} %"


def ticks_page(record: dict[str, Any]) -> str:
    """Return the record of `measure_ticks` as Markdown."""
    device = record["device"]
    lines = [
        "# Estimated and measured ticks",
        "",
        f"{signature(record)} The bundled checkpoint, widened and in {device['precision']}, against the roofline of "
        "[estimate](../estimate.md). The machine was measured first, on large linear layers: it reads "
        f"{device['bandwidth'] / 1e9:.1f} GB/s and does {device['arithmetic'] / 1e9:.0f} GFLOPS.",
    ]
    for name, model in record["models"].items():
        ticks = [
            [str(row["positions"])]
            + [f"{1000 * row[key]:.2f}" for key in ("measured", "estimated")]
            + [error(row["estimated"], row["measured"])]
            for row in model["ticks"]
        ]
        decoding = [
            [SHORT.get(row["sampler"], row["sampler"])]
            + [f"{row[f'{kind}_tokens_per_second']:.1f}" for kind in ("measured", "estimated")]
            + [error(row["estimated_tokens_per_second"], row["measured_tokens_per_second"])]
            + [f"{row[f'{kind}_speedup']:.2f}x" for kind in ("measured", "estimated")]
            for row in model["decoding"]
        ]
        lines += [
            "",
            f"## {name}, {model['parameters'] / 1e6:.0f}M parameters",
            "",
            "A tick of one recurrence over some positions: prelude, core, coda and head, without the sampler.",
            "",
            *markdown_table(["positions", "measured, ms", "estimated, ms", "error"], ticks),
            "",
            "Decoding held-out problems with the whole sampler, by the passes that these problems need. Ratios are "
            "relative to autoregression.",
            "",
            *markdown_table(
                ["sampler", "measured, tokens/s", "estimated, tokens/s", "error", "measured ratio", "estimated ratio"],
                decoding,
            ),
        ]
    return "\n".join(lines) + "\n"


def limits(result: Estimate) -> str:
    """Return what limits the samplers: one word if it is the same for all."""
    by_name = {SHORT.get(row["sampler"], row["sampler"]): row["limited_by"] for row in result.rows}
    if len(set(by_name.values())) == 1:
        return next(iter(by_name.values()))
    return ", ".join(f"{name}: {limit}" for name, limit in by_name.items())


def device_rows(model: str, devices: int) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows for every device that can run a model: tokens/s, and the ratio to autoregression."""
    shape, rows, names = ModelShape.of_config(config_of(model), model), [], []
    for device in PUBLISHED:
        if devices > 1 and device.link is None:
            continue
        for text, title in TEXTS.items():
            result = estimate(shape, device, stored_waves(text, shape.num_steps), text, devices)
            names = [SHORT.get(row["sampler"], row["sampler"]) for row in result.rows]
            base, *others = result.rows
            cells = [f"{base['tokens_per_second']:.3g}"]
            cells += [f"{row['tokens_per_second']:.3g} ({row['speedup']:.1f}x)" for row in others]
            reductions = [f"{row['reductions_per_tick'] * row['ticks_per_token']:.0f}" for row in result.rows]
            cells += [" / ".join(reductions)] if devices > 1 else []
            count = "" if devices == 1 else f"{devices} x "
            rows.append([f"{count}{device.name}", title, *cells, limits(result)])
    more = ["all-reduces a token"] if devices > 1 else []
    return ["device", "passes as on", *names, *more, "limited by"], rows


def device_tables() -> str:
    """Return the tables of docs/estimate.md: the devices, and the speeds of every model."""
    sheets = [
        [
            f"`{d.name}`",
            d.title,
            f"{d.bandwidth / 1e9:,.0f}",
            f"{d.arithmetic / 1e12:.4g}",
            f"{d.balance:.0f}",
            d.precision,
            "" if d.link is None else f"{d.link / 1e9:.0f}",
            f"{d.memory / 1e9:.0f}",
            d.source,
        ]
        for d in PUBLISHED
    ]
    headings = ["device", "name", "GB/s", "TFLOPS", "I", "precision", "link, GB/s", "memory, GB", "source"]
    lines = ["", "### The devices", "", *markdown_table(headings, sheets)]
    for model, devices in SHOWN.items():
        shape = ModelShape.of_config(config_of(model), model)
        title = f"### {model}, {shape.parameters / 1e9:.3g}B parameters, r = {shape.num_steps}"
        lines += ["", title + (f", over {devices} devices" if devices > 1 else ""), ""]
        lines += markdown_table(*device_rows(model, devices))
    return "\n".join(lines) + "\n\n"


def write_tables() -> None:
    """Put the tables into docs/estimate.md."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    write_file(PAGE, before + BEGIN + device_tables() + END + rest.partition(END)[2])


def main(
    part: Annotated[Literal["waves", "ticks", "devices"], typer.Option(help="What to measure or calculate.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="For ticks: a checkpoint folder; by default the bundled one, widened.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Texts to decode.")] = 4,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each.")] = 64,
):
    """Measure or calculate one part."""
    if part == "waves":
        measure_statistics(count, max_new_tokens)
    elif part == "ticks":
        measure_ticks(checkpoint, count, max_new_tokens)
    else:
        write_tables()


if __name__ == "__main__":
    typer.run(main)

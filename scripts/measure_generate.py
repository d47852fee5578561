"""Measure the cost of logits processors, streaming and ragged batches with diffusion forcing.

    python scripts/measure_generate.py

Writes docs/benchmarks/generate.json and generate.md. The cases of a table take turns in one run on the
bundled checkpoint. Run the script on an otherwise idle machine.
"""

import json
import platform
import statistics
from contextlib import nullcontext
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import torch
import transformers
import typer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, WatermarkingConfig

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.timing import timed_generate
from hf_diffusion_forcing.generation.loop import Loop

ROOT = Path(__file__).parent.parent
FORCING = {"sampler": "diffusion_forcing", "wavefront": 16, "inner_recurrence": 4, "seed": 0}
PROCESSORS = {
    "none": {},
    "temperature": {"do_sample": True, "temperature": 0.7, "top_k": 0},
    "top_k": {"do_sample": True, "top_k": 20},
    "top_p": {"do_sample": True, "top_k": 0, "top_p": 0.9},
    "min_p": {"do_sample": True, "top_k": 0, "min_p": 0.05},
    "typical_p": {"do_sample": True, "top_k": 0, "typical_p": 0.9},
    "epsilon_cutoff": {"do_sample": True, "top_k": 0, "epsilon_cutoff": 1e-3},
    "eta_cutoff": {"do_sample": True, "top_k": 0, "eta_cutoff": 1e-3},
    "sampling alone": {"do_sample": True, "top_k": 0},
    "suppress_tokens": {"suppress_tokens": [5]},
    "repetition_penalty": {"repetition_penalty": 1.0001},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 40},
    "bad_words_ids": {"bad_words_ids": [[500], [501, 502]]},
    "sequence_bias": {"sequence_bias": [[[500], -1.0]]},
    "min_new_tokens": {"min_new_tokens": 8},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1000, 1.1)},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda row, ids: range(512)},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=0.0)},
}
"""Settings that leave most texts unchanged, so that the same ticks are compared."""


def seconds_per_tick(model, input_ids: torch.Tensor, **settings) -> float:
    call = timed_generate(model, {"input_ids": input_ids}, FORCING | settings | {"max_new_tokens": 100})
    return call.seconds / call.ticks


def measure_processors(model, prompts: list[torch.Tensor]) -> dict[str, float]:
    """Return the time of a tick with each processor relative to one without: medians over prompts."""
    ratios = {name: [] for name in PROCESSORS}
    for input_ids in tqdm(prompts, desc="processors"):
        base = seconds_per_tick(model, input_ids)
        for name, settings in PROCESSORS.items():
            ratios[name].append(seconds_per_tick(model, input_ids, **settings) / base)
    return {name: statistics.median(values) for name, values in ratios.items()}


def measure_first_token(model, prompts: list[torch.Tensor]) -> dict[str, float]:
    """Return the median seconds to the first streamed token, and their ratio."""
    samplers = {"autoregressive": {"sampler": "autoregressive", "seed": 0}, "diffusion_forcing": FORCING}
    seconds = {name: [] for name in samplers}
    for input_ids in tqdm(prompts, desc="first token"):
        for name, settings in samplers.items():
            call = timed_generate(model, {"input_ids": input_ids}, settings | {"max_new_tokens": 4}, first=True)
            seconds[name].append(call.first)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return medians | {"ratio": medians["diffusion_forcing"] / medians["autoregressive"]}


def measure_batches(model, tokenizer, repeats: int) -> list[dict]:
    """Measure tokens per second on ragged batches; one case keeps ended rows in the batch."""
    ways = {
        "autoregressive": ({"sampler": "autoregressive", "seed": 0}, nullcontext),
        "diffusion_forcing": (FORCING, nullcontext),
        "diffusion_forcing, ended rows stay": (
            FORCING,
            lambda: patch.object(Loop, "let_rows_leave", lambda self: None),
        ),
    }
    table = []
    for batch in (1, 4, 16):
        speeds = {name: [] for name in ways}
        for repeat in tqdm(range(repeats), desc=f"batch {batch}"):
            worked = islice(problems(100 + repeat, held_out=True, kind="worked"), batch)
            inputs = tokenizer([p.prompt for p in worked], return_tensors="pt", padding=True)
            for name, (settings, context) in ways.items():
                with context():
                    call = timed_generate(model, inputs, settings | {"max_new_tokens": 160})
                speeds[name].append(sum(map(len, call.rows)) / call.seconds)
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        table.append({"batch": batch, **medians})
    return table


def markdown(figures: dict) -> str:
    """Return the page: the measurements and how they were made."""
    lines = [
        "# The cost of processors, streaming and batches",
        "",
        f"Measured on {figures['date']} by `scripts/measure_generate.py` with the bundled checkpoint in float32 on "
        f"{figures['machine']}, {figures['threads']} threads. Diffusion forcing uses `wavefront=16` and "
        "`inner_recurrence=4`. The two sides of each ratio come from one run.",
        "",
        "## Time of a tick with a processor",
        "",
        "Relative to a tick without any. Processors that read no prefix run once per wave. The others run once per "
        "position, with that position's own prefix.",
        "",
        "| setting | time of a tick |",
        "| --- | ---: |",
        *(f"| {name} | {ratio:.2f}x |" for name, ratio in figures["processors"].items()),
        "",
        "## First streamed token",
        "",
        "With both samplers, the pass over the prompt predicts the first token. Diffusion forcing takes "
        f"{figures['first_token']['ratio']:.2f}x the time of autoregression.",
        "",
        "## Batches with rows of different lengths",
        "",
        "Tokens per second relative to autoregression on the same batch. In the last column, rows that have ended stay "
        "in the batch.",
        "",
        "| batch | diffusion forcing | ended rows stay |",
        "| ---: | ---: | ---: |",
    ]
    for row in figures["batches"]:
        base = row["autoregressive"]
        cells = (row["diffusion_forcing"] / base, row["diffusion_forcing, ended rows stay"] / base)
        lines.append(f"| {row['batch']} | " + " | ".join(f"{cell:.2f}x" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(
    count: Annotated[int, typer.Option(help="Prompts for the processor and first-token tables.")] = 9,
    repeats: Annotated[int, typer.Option(help="Batches of each size.")] = 5,
    threads: int = 2,
    output: Path = ROOT / "docs" / "benchmarks",
):
    torch.set_num_threads(threads)
    path = bundled_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    chosen = islice(problems(99, held_out=True, kind="worked"), count)
    prompts = [tokenizer(p.prompt, return_tensors="pt").input_ids for p in chosen]
    seconds_per_tick(model, prompts[0])  # the first call of a process includes lazy initialisation
    figures = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()} CPU, {platform.system()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": threads,
        "processors": measure_processors(model, prompts),
        "first_token": measure_first_token(model, prompts),
        "batches": measure_batches(model, tokenizer, repeats),
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "generate.json").write_text(json.dumps(figures, indent=2) + "\n")
    (output / "generate.md").write_text(markdown(figures))


if __name__ == "__main__":
    typer.run(main)

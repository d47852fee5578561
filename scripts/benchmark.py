"""Time every sampler on a checkpoint wide enough that decoding streams its weights from memory.

    python scripts/benchmark.py --factor 8 --dtype bfloat16
    python scripts/benchmark.py --sweep wavefront

The bundled checkpoint is widened in memory without changing what it computes (scripts/widen_checkpoint.py), so its
accuracy is that of the narrow one, which is what the accuracy column was measured on. All rows of a table are
interleaved in one run, prompt by prompt. Writes docs/benchmarks/<name>.json and .md.
"""

import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
import transformers
import typer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer
from widen_checkpoint import widen

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.measure import accuracy, solve
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.presets import PRESET_SAMPLERS

ROOT = Path(__file__).parent.parent
BASE = "autoregressive, r = 32"
PAPER = {"sampler": "diffusion_forcing", "wavefront": 128, "inner_recurrence": 4, "embedding_momentum": 0.1}
SAMPLERS = {
    **{f"autoregressive, r = {r}": {"sampler": "autoregressive", "num_steps": r} for r in (32, 16, 8, 4)},
    "adaptive": {"sampler": "adaptive"},
    "diffusion_forcing, the paper's settings": PAPER,
    **{f"{sampler}, {name}": {"sampler_preset": name} for name, sampler in PRESET_SAMPLERS.items()},
}
SWEEPS = {
    "wavefront": (1, 2, 4, 8, 16, 32, 64, 128),
    "context": (128, 512, 1024, 2048, 4000),
    "batch": (1, 2, 4, 8, 16),
}


class Clock(BaseStreamer):
    """When the first new token came: what lies before it is the prompt's pass."""

    def __init__(self):
        self.puts, self.start, self.first = 0, time.perf_counter(), 0.0

    def put(self, value):
        self.puts += 1
        if self.puts == 2:
            self.first = time.perf_counter() - self.start

    def end(self):
        self.total = time.perf_counter() - self.start


@dataclass
class Timing:
    """What one sampler did in all calls."""

    total: list[float] = field(default_factory=list)
    decoding: list[float] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    ticks: int = 0
    core_passes: int = 0
    kv_bytes: int = 0

    @property
    def tokens(self) -> int:
        """Decoded ones: a text's first token comes from the prompt's own pass."""
        return sum(len(text) - 1 for text in self.texts)


def run(model, input_ids: torch.Tensor, settings: dict, timing: Timing, max_new_tokens: int) -> None:
    clock = Clock()
    output = model.generate(
        input_ids,
        **settings,
        seed=0,
        streamer=clock,
        max_new_tokens=max_new_tokens,
        return_dict_in_generate=True,
    )
    new = output.sequences[0, input_ids.shape[1] :].tolist()
    stats = getattr(output, "stats", None)
    timing.total.append(clock.total)
    timing.decoding.append(clock.total - clock.first)
    timing.texts.append(new)
    timing.ticks += stats.ticks if stats else len(new) - 1
    timing.core_passes += stats.core_passes if stats else settings["num_steps"] * (len(new) - 1)
    timing.kv_bytes = output.past_key_values.nbytes


def part_bytes(model) -> dict[str, int]:
    """Bytes of weights that a pass over prelude, core and coda with head reads."""
    parts = {"prelude": 0, "core": 0, "coda": 0}
    for name, weight in model.named_parameters():
        size = weight.numel() * weight.element_size()
        if "prelude" in name:
            parts["prelude"] += size
        elif "core_block" in name or "adapter" in name:
            parts["core"] += size
        elif "coda" in name or "lm_head" in name:
            parts["coda"] += size
    if model.config.tie_word_embeddings:
        parts["coda"] += model.lm_head.weight.numel() * model.lm_head.weight.element_size()
    return parts


@torch.no_grad()
def bandwidth(model, repeats: int = 15) -> float:
    """Bytes a second at which the model's own linear layers read their weights, one position at a time."""
    layers = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = [torch.zeros(1, weight.shape[1], dtype=weight.dtype) for weight in layers]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for weight, x in zip(layers, inputs, strict=True):
            F.linear(x, weight)
        seconds.append(time.perf_counter() - start)
    return sum(w.numel() * w.element_size() for w in layers) / statistics.median(seconds)


def rows(timings: dict[str, Timing], base: Timing, parts: dict[str, int], speed: float, solved: dict) -> list[dict]:
    """One row a sampler."""
    table = []
    for name, timing in timings.items():
        pairs = list(zip(base.texts, timing.texts, strict=True))
        equal = sum(a == b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=False))
        read = (parts["prelude"] + parts["coda"]) * timing.ticks + parts["core"] * timing.core_passes
        if name == "adaptive":  # its ends run once a token, not once a recurrence
            read = (parts["prelude"] + parts["coda"]) * timing.tokens + parts["core"] * timing.core_passes
        per_token = [d / (len(t) - 1) for d, t in zip(timing.decoding, timing.texts, strict=True)]
        base_per_token = [d / (len(t) - 1) for d, t in zip(base.decoding, base.texts, strict=True)]
        speedups = [slow / fast for slow, fast in zip(base_per_token, per_token, strict=True)]
        whole = [
            (slow / len(a)) / (fast / len(b))
            for slow, fast, (a, b) in zip(base.total, timing.total, pairs, strict=True)
        ]
        table.append(
            {
                "sampler": name,
                "accuracy": solved.get(name),
                "tokens_per_second": timing.tokens / sum(timing.decoding),
                "speedup": statistics.median(speedups),
                "speedup_range": [min(speedups), max(speedups)],
                "speedup_end_to_end": statistics.median(whole),
                "core_passes_per_token": timing.core_passes / timing.tokens,
                "equal_share": equal / sum(map(len, base.texts)),
                "ms_per_tick": 1000 * sum(timing.decoding) / timing.ticks,
                "streaming_limit": read / speed / sum(timing.decoding),
                "kv_bytes": timing.kv_bytes,
            }
        )
    return table


def markdown(record: dict) -> str:
    lines = [
        f"# {record['title']}",
        "",
        f"{record['parameters'] / 1e6:.0f}M parameters, {record['dtype']}, {record['machine']}, {record['date']}; "
        f"`{record['command']}`. {record['prompts']} prompts, {record['repeats']} repeats, interleaved; speeds are "
        f"medians over calls (lowest to highest). Linear layers of these shapes read "
        f"{record['bandwidth'] / 1e9:.1f} GB/s in this run; "
        f"the limit column is the time the weights of all passes take at that rate, over the time taken. "
        f"Peak memory of the process {record['peak_bytes'] / 1e9:.1f} GB.",
        "",
        "| sampler | solved | decoding | end to end | core passes a token | equal tokens | ms a tick | of limit | KV |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        low, high = row["speedup_range"]
        cells = (
            "" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %",
            f"{row['speedup']:.2f}x ({low:.2f} to {high:.2f})",
            f"{row['speedup_end_to_end']:.2f}x",
            f"{row['core_passes_per_token']:.2f}",
            f"{100 * row['equal_share']:.1f} %",
            f"{row['ms_per_tick']:.1f}",
            f"{100 * row['streaming_limit']:.0f} %",
            f"{row['kv_bytes'] / 1e6:.1f} MB",
        )
        lines.append(f"| {row['sampler']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def sweep_cases(name: str, tokenizer, prompts: list[torch.Tensor]) -> dict[str, tuple[Callable, dict]]:
    """The rows of a sweep: what to do to a prompt, and the settings."""
    forcing = {"sampler": "diffusion_forcing", "sampler_preset": "fast"}
    base = SAMPLERS[BASE]
    if name == "wavefront":
        return {BASE: (lambda ids: ids, base)} | {
            f"wavefront {value}": (lambda ids: ids, forcing | {"wavefront": value}) for value in SWEEPS[name]
        }
    cases = {}
    for value in SWEEPS[name]:
        filler = torch.cat(prompts * (value // sum(p.shape[1] for p in prompts) + 1), dim=1)

        def lengthen(ids, value=value, filler=filler):
            return torch.cat((filler, ids), dim=1)[:, -value:]

        cases[f"{name} {value}, autoregressive"] = (lengthen, base)
        cases[f"{name} {value}, diffusion_forcing"] = (lengthen, forcing)
    return cases


def main(
    checkpoint: Annotated[str | None, typer.Option(help="Huginn layout; the bundled one by default.")] = None,
    factor: Annotated[int, typer.Option(help="How many times as wide.")] = 8,
    dtype: str = "bfloat16",
    count: Annotated[int, typer.Option(help="Prompts.")] = 3,
    repeats: int = 3,
    solved_of: Annotated[int, typer.Option(help="Held-out problems for the accuracy column; 0 leaves it out.")] = 200,
    max_new_tokens: int = 96,
    sweep: Annotated[Literal["none", "wavefront", "context"], typer.Option(help="What to vary.")] = "none",
    threads: int = 2,
    output: Path = ROOT / "docs" / "benchmarks",
):
    torch.set_num_threads(threads)
    path = checkpoint or bundled_checkpoint()
    narrow = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    chosen = list(islice(problems(2026, held_out=True, kind="worked"), max(count, solved_of)))
    prompts = [tokenizer(p.prompt, return_tensors="pt").input_ids for p in chosen[:count]]
    model = widen(narrow, factor).to(getattr(torch, dtype))

    cases = {name: (lambda ids: ids, settings) for name, settings in SAMPLERS.items()}
    if sweep != "none":
        cases = sweep_cases(sweep, tokenizer, prompts)
    solved = {}
    if solved_of and sweep == "none":
        for name, settings in tqdm(SAMPLERS.items(), desc="solving"):
            solved[name] = accuracy(chosen[:solved_of], solve(narrow, tokenizer, chosen[:solved_of], 64, **settings))
    timings = {name: Timing() for name in cases}
    rates = []
    for prepare, settings in cases.values():
        run(model, prepare(prompts[0]), settings, Timing(), 4)  # the first calls pay for lazy initialisation
    for _ in tqdm(range(repeats), desc="timing"):
        for input_ids in prompts:
            rates.append(bandwidth(model))
            for name, (prepare, settings) in cases.items():
                run(model, prepare(input_ids), settings, timings[name], max_new_tokens)
    record = {
        "title": f"Speed, the bundled checkpoint {factor} times as wide" + ("" if sweep == "none" else f": {sweep}"),
        "command": f"scripts/benchmark.py --factor {factor} --dtype {dtype} --sweep {sweep}",
        "machine": f"{platform.machine()} CPU, {threads} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "date": date.today().isoformat(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": dtype,
        "prompts": count,
        "repeats": repeats,
        "bandwidth": statistics.median(rates),
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "rows": rows(timings, next(iter(timings.values())), part_bytes(model), statistics.median(rates), solved),
    }
    name = f"speed_{factor}x_{dtype}" + ("" if sweep == "none" else f"_{sweep}")
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (output / f"{name}.md").write_text(markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    typer.run(main)

"""Time every sampler on checkpoints of realistic size, which do not fit into the processor's cache.

    python scripts/benchmark.py
    python scripts/benchmark.py --sweep wavefront
    python scripts/benchmark.py --redraw

The script widens the checkpoints (the bundled one and the one trained on Python source) in memory. Widening does not
change the function that they compute (evaluation/widening.py), so quality is measured on the narrow checkpoints. The
samplers of a table take turns on every prompt of one run. Writes docs/benchmarks/speed*.json and .md, on a CPU without
AVX-512 speed_avx2*.
"""

import json
import platform
import resource
import statistics
from collections.abc import Callable, Iterable
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import torch
import transformers
import typer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint, pack_linear_weights
from hf_diffusion_forcing.evaluation.benchmark import BASE_TOKENS, Case, measure, table_of, timed
from hf_diffusion_forcing.evaluation.measure import accuracy, emitted_loss, solve
from hf_diffusion_forcing.evaluation.problems import KINDS, problem_prompts, problems
from hf_diffusion_forcing.evaluation.python_source import source_prompts
from hf_diffusion_forcing.evaluation.speed_rows import Timing, bandwidth
from hf_diffusion_forcing.evaluation.widening import widen
from hf_diffusion_forcing.generation.cost_curve import cost_curve
from hf_diffusion_forcing.settings.presets import PRESET_SAMPLERS
from hf_diffusion_forcing.visualization.speed import report

ROOT = Path(__file__).parent.parent
SOURCE_CHECKPOINT = ROOT / "tests" / "fixtures" / "python-source"
BASE = "autoregressive, r = 32"
PAPER = {"sampler": "diffusion_forcing", "wavefront": 128, "inner_recurrence": 4, "embedding_momentum": 0.1}
SAMPLERS = {
    **{f"autoregressive, r = {r}": {"sampler": "autoregressive", "num_steps": r} for r in (32, 16, 8, 4)},
    "adaptive": {"sampler": "adaptive"},
    "diffusion_forcing, the paper's settings": PAPER,
    **{f"{sampler}, {name}": {"sampler_preset": name} for name, sampler in PRESET_SAMPLERS.items()},
}
FAST = {"sampler_preset": "fast"}
AUTO = {"sampler": "diffusion_forcing", "wavefront": "auto", "adaptive_prefill": True}
FULL_WAVE = {"sampler": "diffusion_forcing", "inner_recurrence": 1, "exit_threshold": 0.0}
"""No position converges before its budget, and `headway` makes the wave wide from the first tick."""
SWEEPS = {
    "wavefront": (1, 2, 4, 8, 16, 32, 64, 128),
    "context": (128, 512, 1024, 2048, 4000),
    "batch": (1, 2, 4, 8, 16),
    "factor": (1, 2, 4, 8, 12),
}
Prompts = list[torch.Tensor]


def load(path, factor: int, dtype: str, pack: bool):
    """Load the narrow checkpoint in float32, the wide one, and the tokenizer."""
    narrow = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    wide = widen(narrow, factor).to(getattr(torch, dtype))
    return narrow, pack_linear_weights(wide) if pack else wide, AutoTokenizer.from_pretrained(path, padding_side="left")


def problem_quality(narrow, tokenizer, settings: dict, count: int) -> dict[str, float]:
    """Return the share of held-out problems solved, per kind."""
    shares = {}
    for kind in KINDS:
        chosen = list(islice(problems(2026, held_out=True, kind=kind), count))
        room = {"max_new_tokens": 160 if kind == "worked" else 12}
        shares[kind] = accuracy(chosen, solve(narrow, tokenizer, chosen, 64, **settings, **room))
    return shares


def plain(names: Iterable[str]) -> dict[str, Case]:
    return {name: Case(SAMPLERS[name]) for name in names}


def main_tables(load_model: Callable, count: int, repeats: int, room: int, solved_of: int) -> list[dict]:
    """Measure all samplers, on problems and on Python source."""
    tables = []
    narrow, wide, tokenizer = load_model(bundled_checkpoint())
    prompts = domain_prompts("Problems", tokenizer, count)
    result = measure(wide, prompts, plain(SAMPLERS), SAMPLERS[BASE], repeats, 160)
    for each in tqdm(result["rows"] if solved_of else [], desc="solving"):
        shares = problem_quality(narrow, tokenizer, SAMPLERS[each["sampler"]], solved_of)
        each["solved"] = shares
        each["quality"] = ", ".join(f"{100 * share:.1f} % {kind}" for kind, share in shares.items())
    tables.append({"title": "Problems", **result})

    narrow, wide, tokenizer = load_model(SOURCE_CHECKPOINT)
    prompts = domain_prompts("Python source", tokenizer, count)
    result = measure(wide, prompts, plain(SAMPLERS), SAMPLERS[BASE], repeats, room)
    for each in result["rows"]:
        losses = [
            emitted_loss(narrow, prompt, text)
            for prompt, text in zip(prompts, result["texts"][each["sampler"]], strict=False)
        ]
        each["loss"] = statistics.mean(losses)
        each["quality"] = f"loss {each['loss']:.3f}"
    tables.append({"title": "Python source", **result})
    return tables


def domain_prompts(name: str, tokenizer, count: int) -> Prompts:
    """Return the prompts of a domain, each [1, length]."""
    if name == "Python source":
        return source_prompts(tokenizer, count, 128)
    return problem_prompts(tokenizer, count, seed=2026, kind="worked")


def wavefront_tables(wide, prompts: Prompts, repeats: int, room: int) -> dict[str, dict]:
    """Measure the preset fast at several wavefronts, and waves in which nothing converges."""
    values = SWEEPS["wavefront"]
    fast = {f"fast, wavefront {n}": Case(FAST | {"wavefront": n}) for n in values}
    full = {
        f"full wave of {n}": Case(FULL_WAVE | {"wavefront": n, "headway": n, "max_new_tokens": n + 1}) for n in values
    }
    unconverging = measure(wide, prompts[:1], full, SAMPLERS[BASE], repeats, room)
    curve = cost_curve(wide, 1, torch.device("cpu"))
    for each in unconverging["rows"]:
        each["predicted_ms"] = 1000 * curve.seconds_per_tick(each["positions_per_core_pass"], 1)
    return {
        "the preset fast": measure(wide, prompts, plain([BASE]) | fast, SAMPLERS[BASE], repeats, room),
        "waves in which nothing converges": unconverging,
    }


def long_prompt(domain: str, tokenizer, length: int) -> torch.Tensor:
    """Return a prompt of `length` tokens, [1, length]: source text, or a problem after many solved ones."""
    if domain == "Python source":
        return source_prompts(tokenizer, 1, length)[0]
    *shown, asked = islice(problems(2026, held_out=True, kind="worked"), 64)
    text = "".join(f"{p.prompt}{p.answer}\n" for p in shown) + asked.prompt
    return tokenizer(text, return_tensors="pt").input_ids[:, -length:]


def context_tables(wide, prompts: dict[int, torch.Tensor], repeats: int, room: int) -> dict[str, dict]:
    """Measure the preset fast after prompts of given lengths. The base reads the same prompt."""
    cases = {f"fast, context {length}": Case(FAST, prompt) for length, prompt in prompts.items()}
    table = measure(wide, list(prompts.values())[:1], cases, SAMPLERS[BASE], repeats, room)
    first = table["rows"][0]
    for each in table["rows"]:
        # A tick reads every stored key and value once.
        grown = (each["kv_bytes"] - first["kv_bytes"]) / table["bandwidth"]
        each["predicted_ms"] = first["ms_per_tick"] + 1000 * grown
    return {"the preset fast": table}


def batch_tables(wide, tokenizer, prompts: Prompts, repeats: int, room: int) -> dict[str, dict]:
    """Measure batches of several sizes relative to batch 1 of the same sampler."""
    tables = {}

    def batch(rows: int):
        return tokenizer.pad({"input_ids": [ids[0].tolist() for ids in prompts[:rows]]}, return_tensors="pt")

    names = (BASE, "diffusion_forcing, fast", "speculative_wavefront, lossless")
    samplers = {name: SAMPLERS[name] for name in names} | {"diffusion_forcing, wavefront auto": AUTO}
    for name, settings in samplers.items():
        timings = {f"{name}, batch {n}": Timing() for n in SWEEPS["batch"]}
        for n in SWEEPS["batch"] if settings is AUTO else ():
            wide.generate(**batch(n), **settings, max_new_tokens=1)  # measures the cost curve
        # Full-depth prompts of large batches take minutes, so only diffusion forcing is repeated.
        rounds = repeats if name.startswith("diffusion_forcing") else 1
        for _ in tqdm(range(rounds), desc=name):
            for n, timing in zip(SWEEPS["batch"], timings.values(), strict=True):
                timing.rates.append(bandwidth(wide))
                timing.bases.append(timed(wide, batch(1), settings | {"max_new_tokens": room}))
                timing.calls.append(timed(wide, batch(n), settings | {"max_new_tokens": room}))
        tables[name] = table_of(wide, timings, dict.fromkeys(timings, settings), None) | {"repeats": rounds}
    return tables


def factor_tables(path: Path, domain: str, load_model: Callable, count: int, repeats: int, room: int) -> dict:
    """Measure models of several widths."""
    tables = {}
    for value in SWEEPS["factor"]:
        _, wide, tokenizer = load_model(path, factor=value)
        names = [BASE, "adaptive", *(f"{sampler}, {name}" for name, sampler in PRESET_SAMPLERS.items())]
        prompts = domain_prompts(domain, tokenizer, count)
        tables[f"{value} times as wide"] = measure(wide, prompts, plain(names), SAMPLERS[BASE], repeats, room)
    return tables


def sweep_tables(sweep: str, load_model: Callable, count: int, repeats: int, room: int) -> list[dict]:
    """Vary one setting, on problems and on Python source."""
    tables = []
    for domain, path in (("Problems", bundled_checkpoint()), ("Python source", SOURCE_CHECKPOINT)):
        if sweep == "factor":
            found = factor_tables(path, domain, load_model, count, repeats, room)
        else:
            _, wide, tokenizer = load_model(path)
            if sweep == "wavefront":
                found = wavefront_tables(wide, domain_prompts(domain, tokenizer, count), repeats, room)
            elif sweep == "context":
                prompts = {length: long_prompt(domain, tokenizer, length) for length in SWEEPS["context"]}
                found = context_tables(wide, prompts, repeats, room)
            else:
                prompts = domain_prompts(domain, tokenizer, max(SWEEPS["batch"]))
                found = batch_tables(wide, tokenizer, prompts, repeats, room)
        tables += [{"title": f"{domain}, {what}", **table} for what, table in found.items()]
    return tables


def main(
    factor: Annotated[int, typer.Option(help="Factor by which to widen the models.")] = 8,
    dtype: str = "bfloat16",
    pack: Annotated[bool, typer.Option(help="Pack the linear weights (pack_linear_weights).")] = True,
    count: Annotated[int, typer.Option(help="Number of prompts.")] = 4,
    repeats: int = 3,
    solved_of: Annotated[
        int, typer.Option(help="Held-out problems of each kind for the quality column; 0 omits the column.")
    ] = 200,
    max_new_tokens: int = 96,
    sweep: Annotated[
        Literal["none", "wavefront", "context", "batch", "factor"], typer.Option(help="The setting to vary.")
    ] = "none",
    threads: int = 2,
    output: Path = ROOT / "docs",
    redraw: Annotated[
        bool, typer.Option("--redraw", help="Measure nothing: rewrite pages and plots from the stored records.")
    ] = False,
):
    if redraw:
        for path in sorted((output / "benchmarks").glob("speed*.json")):
            report(json.loads(path.read_text()), path.stem, output)
            typer.echo(f"Wrote the page and the plot for {path.name}.")
        return
    torch.set_num_threads(threads)
    capability = torch.backends.cpu.get_cpu_capability()

    def load_model(path, factor=factor):
        return load(path, factor, dtype, pack)

    if sweep == "none":
        tables = main_tables(load_model, count, repeats, max_new_tokens, solved_of)
    else:
        tables = sweep_tables(sweep, load_model, count, repeats, max_new_tokens)
    for each in tables:
        each.pop("texts", None)
    options = f"--factor {factor} --dtype {dtype}{'' if pack else ' --no-pack'}"
    options += f" --sweep {sweep}" if sweep != "none" else f" --solved-of {solved_of}"
    options += f" --count {count} --repeats {repeats} --max-new-tokens {max_new_tokens}"
    record = {
        "title": "Speed" + (f" over {sweep}" if sweep != "none" else ""),
        "command": f"scripts/benchmark.py {options}",
        "machine": f"{platform.machine()} CPU ({capability}), {threads} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        "date": date.today().isoformat(),
        "dtype": dtype + (", packed weights" if pack else ""),
        "prompts": max(SWEEPS["batch"]) if sweep == "batch" else count,
        "base_tokens": BASE_TOKENS,
        "repeats": repeats,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "tables": tables,
    }
    name = (
        "speed"
        + ("" if "AVX512" in capability else f"_{capability.lower()}")
        + ("" if pack else "_plain")
        + (f"_{sweep}" if sweep != "none" else "")
    )
    (output / "benchmarks").mkdir(parents=True, exist_ok=True)
    (output / "benchmarks" / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(report(record, name, output))


if __name__ == "__main__":
    typer.run(main)

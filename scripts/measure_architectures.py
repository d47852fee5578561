"""Measure two architectures trained on the same problems by the same recipe: Huginn's layout, and Parcae.

    python scripts/measure_architectures.py
    python scripts/measure_architectures.py --only quality
    python scripts/measure_architectures.py --only speed

Accuracy at several depths, then every sampler beside autoregression at the same depth. Writes
docs/benchmarks/architectures.json and architectures.md. The parts may be measured one after the other; speed wants an
otherwise idle machine.
"""

import json
import platform
import statistics
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import torch
import transformers
import typer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.markdown import markdown_table
from hf_diffusion_forcing.evaluation.measure import accuracy, solve
from hf_diffusion_forcing.evaluation.problems import KINDS, problems
from hf_diffusion_forcing.evaluation.runs import Run, compare
from hf_diffusion_forcing.files import write_file

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "benchmarks" / "architectures.json"
CHECKPOINTS = {"Huginn": bundled_checkpoint(), "Parcae": ROOT / "tests" / "fixtures" / "parcae-problems"}
DEPTHS = (1, 2, 4, 8)
SAMPLERS = {
    "autoregressive": {"sampler": "autoregressive"},
    "lossless": {"sampler_preset": "lossless"},
    "adaptive": {"sampler": "adaptive", "exit_threshold": 0.03},
    "fast": {"sampler_preset": "fast"},
}
HELD_OUT_SEED = 2026


def settings(name: str) -> list[tuple[int, str, dict]]:
    """Return the depth, the name and the keywords of every way to decode: all samplers at 8 and, for Huginn, at 32."""
    shallow = [(depth, "autoregressive", SAMPLERS["autoregressive"]) for depth in DEPTHS[:-1]]
    deep = [32] if name == "Huginn" else []
    return shallow + [(depth, *each) for depth in (DEPTHS[-1], *deep) for each in SAMPLERS.items()]


def held_out(kind: str, count: int) -> list:
    return list(islice(problems(HELD_OUT_SEED, held_out=True, kind=kind), count))


def measure_quality(name: str, model, tokenizer, count: int) -> dict[str, dict[str, float]]:
    """Return the share of problems solved, by depth and sampler."""
    table = {}
    for depth, decoding, keywords in tqdm(settings(name), desc=f"{name}, quality"):
        row = {}
        for kind in KINDS:
            chosen, room = held_out(kind, count), 160 if kind == "worked" else 12
            answers = solve(model, tokenizer, chosen, 50, num_steps=depth, max_new_tokens=room, **keywords)
            row[kind] = accuracy(chosen, answers)
        table[f"{decoding}, r = {depth}"] = row
    return table


def measure_speed(name: str, model, tokenizer, count: int, repeats: int) -> dict[str, dict[str, float]]:
    """Decode the same worked problems by every sampler in turn; compare with autoregression at the same depth."""
    prompts = [tokenizer(p.prompt, return_tensors="pt").input_ids for p in held_out("worked", count)]
    table = {}
    for depth in sorted({depth for depth, decoding, _ in settings(name) if decoding != "autoregressive"}):
        rounds = []
        for repeat in range(repeats):
            runs = [Run(each, keywords | {"seed": 0, "num_steps": depth}) for each, keywords in SAMPLERS.items()]
            label = f"{name}, speed at r = {depth}, {repeat + 1}/{repeats}"
            rounds.append(compare(model, tqdm(prompts, desc=label), runs, max_new_tokens=160))
        for column, decoding in enumerate(SAMPLERS):
            speedups = [runs[column].tokens_per_second / runs[0].tokens_per_second for runs in rounds]
            run, base = rounds[0][column], rounds[0][0]
            table[f"{decoding}, r = {depth}"] = {
                "speedup": statistics.median(speedups),
                "speedup_range": [min(speedups), max(speedups)],
                "core_passes_per_token": run.passes_per_token,
                "recurrences_per_token": run.recurrences_per_token,
                "equal_share": run.equal_share(base),
            }
    return table


def table(record: dict) -> list[str]:
    """Return the lines of the page's table."""
    rows = []
    for name, parts in record["architectures"].items():
        for decoding, solved in parts.get("quality", {}).items():
            speed = parts.get("speed", {}).get(decoding)
            row = [name, decoding, *(f"{100 * solved[kind]:.1f} %" for kind in KINDS)]
            if speed is None:
                rows.append([*row, "", "", "", ""])
                continue
            low, high = speed["speedup_range"]
            rows.append(
                [
                    *row,
                    f"{100 * speed['equal_share']:.1f} %",
                    f"{speed['core_passes_per_token']:.2f}",
                    f"{speed['recurrences_per_token']:.2f}",
                    f"{speed['speedup']:.2f}x ({low:.2f} to {high:.2f})",
                ]
            )
    solved = [f"{kind} solved" for kind in KINDS]
    head = ["checkpoint", "decoding", *solved, "equal tokens", "core passes a token", "recurrences a token", "speed"]
    return markdown_table(head, rows)


PAGE = """# Two architectures

Both checkpoints were trained from scratch by `scripts/train_bundled.py` on the same procedurally generated problems.
Huginn is the bundled one; Parcae is `tests/fixtures/parcae-problems`, in bfloat16 on disk and float32
here. {trained}

{problems} held-out problems of each kind, greedy. Equal tokens, passes and speed are relative to autoregression at the
same depth, on {count} worked problems at batch 1, end to end, median and range of {repeats} repeats. On so small a
model, speed reflects overhead as much as the sampler.

{table}

Measured on {date}, 2 cores AVX2 ({machine}), by `scripts/measure_architectures.py`.
"""


def main(
    only: Annotated[Literal["quality", "speed"] | None, typer.Option(help="Measure one part; keep the other.")] = None,
    count: Annotated[int, typer.Option(help="Held-out problems of each kind.")] = 200,
    speed_count: Annotated[int, typer.Option(help="Worked problems to time.")] = 5,
    repeats: Annotated[int, typer.Option(help="Repeats of the timing.")] = 3,
):
    """Measure both checkpoints, and write the record and the page."""
    record = json.loads(TARGET.read_text()) if TARGET.exists() else {"architectures": {}}
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
    record |= {"date": date.today().isoformat(), "machine": machine + transformers.__version__}
    for name, path in CHECKPOINTS.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(path)
        parts = record["architectures"].setdefault(name, {})
        parts["parameters"] = model.num_parameters()
        if only != "speed":
            parts["quality"], record["problems"] = measure_quality(name, model, tokenizer, count), count
        if only != "quality":
            parts["speed"] = measure_speed(name, model, tokenizer, speed_count, repeats)
            record |= {"timed": speed_count, "repeats": repeats}
        write_file(TARGET, json.dumps(record, indent=1) + "\n")
    sizes = ", ".join(f"{name} {parts['parameters'] / 1e6:.2f}M" for name, parts in record["architectures"].items())
    write_file(
        TARGET.with_suffix(".md"),
        PAGE.format(
            trained=f"Parameters: {sizes}.",
            problems=record.get("problems"),
            count=record.get("timed"),
            repeats=record.get("repeats"),
            table="\n".join(table(record)),
            date=record["date"],
            machine=record["machine"],
        ),
    )
    print("\n".join(table(record)))


if __name__ == "__main__":
    typer.run(main)

"""Measure how each setting changes accuracy and work, and write docs/ablations.md.

    python scripts/run_ablations.py

Accuracy is measured on held-out problems in batches. Work (core passes, recurrences) and equal tokens are measured on a
few worked problems, one at a time, relative to autoregression at full depth. Speed is measured last: each setting takes
turns with autoregression on the same prompts, so keep the machine idle during that part. On so small a model, speed
reflects overhead as much as the sampler; scripts/benchmark.py measures speed at realistic sizes. The script writes
docs/benchmarks/ablations.json after every setting and resumes from it when it is run again.
"""

import json
import platform
import statistics
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Annotated

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import transformers
import typer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.measure import accuracy, solve
from hf_diffusion_forcing.evaluation.problems import KINDS, problems
from hf_diffusion_forcing.evaluation.runs import Run, compare, run_prompt
from hf_diffusion_forcing.settings.presets import PRESET_SAMPLERS

ROOT = Path(__file__).parent.parent
SEED = 2026
THRESHOLDS = (0.01, 0.03, 0.1, 0.3)
INNER = (1, 2, 4, 8)
FORCING = {"sampler": "diffusion_forcing"}
BASELINES = {
    "autoregressive, r = 32": {"sampler": "autoregressive"},
    "autoregressive, r = 8": {"sampler": "autoregressive", "num_steps": 8},
    "autoregressive, r = 4": {"sampler": "autoregressive", "num_steps": 4},
    "adaptive, latent_difference": {"sampler": "adaptive"},
    "adaptive, kl": {"sampler": "adaptive", "exit_criterion": "kl"},
}
GRID = {
    f"r' = {inner}, threshold {threshold}": FORCING | {"inner_recurrence": inner, "exit_threshold": threshold}
    for inner in INNER
    for threshold in THRESHOLDS
}
PLAIN = FORCING | {"inner_recurrence": 1}
ONE_BY_ONE = {
    "plain: r' = 1, threshold 0.03": PLAIN,
    "embedding momentum 0.1": PLAIN | {"embedding_momentum": 0.1},
    "embedding momentum 0.3": PLAIN | {"embedding_momentum": 0.3},
    "state noise 0.05, constant": PLAIN | {"state_noise": 0.05},
    "state noise 0.2, linear": PLAIN | {"state_noise": 0.2, "noise_schedule": "linear"},
    "state noise 0.2, square_root": PLAIN | {"state_noise": 0.2, "noise_schedule": "square_root"},
    "state noise 0.2, dampened": PLAIN | {"state_noise": 0.2, "noise_schedule": "dampened"},
    "continuous compute": PLAIN | {"continuous_compute": True},
    "state scale 0": PLAIN | {"state_scale": 0.0},
    "latent momentum 0.1": PLAIN | {"latent_processors": ["latent_momentum"]},
    "anderson": PLAIN | {"latent_processors": ["anderson"]},
    "headway 2": PLAIN | {"headway": 2},
    "headway 4": PLAIN | {"headway": 4},
    "wavefront 4": PLAIN | {"wavefront": 4},
    "wavefront 8": PLAIN | {"wavefront": 8},
    "kv_sharing none": PLAIN | {"kv_sharing": "none"},
    "kv_sharing 4": PLAIN | {"kv_sharing": 4},
}
CRITERIA = {
    f"exit criterion {name}": PLAIN | {"exit_criterion": spec}
    for name, spec in {
        "latent_acceleration": "latent_acceleration",
        "cosine": "cosine",
        "entropy": "entropy",
        "kl": "kl",
        "min_p_kl": "min_p_kl",
        "token_stability": "token_stability",
        "argmax_stability": "argmax_stability",
        "fixed, 8 steps": {"name": "fixed", "steps": 8},
    }.items()
}
PREFILL = {
    "adaptive_prefill": PLAIN | {"adaptive_prefill": True},
    "adaptive_prefill, threshold 0.1": PLAIN | {"adaptive_prefill": True, "exit_threshold": 0.1},
    "prefill_steps 8": PLAIN | {"prefill_steps": 8},
    "prefill_steps 4": PLAIN | {"prefill_steps": 4},
}
LOSSLESS = {"sampler": "speculative_wavefront"}
SPECULATION = {
    f"k = {first}" + (f", second at {second}" if second else ""): LOSSLESS
    | {"draft_depth": first, "second_draft_depth": second}
    for first, second in ((1, 0), (1, 4), (2, 0), (2, 8), (4, 0), (4, 8))
}
PRESET_RUNS = {f"preset {name}": {"sampler_preset": name} for name in PRESET_SAMPLERS}
SECTIONS = {
    "Baselines": BASELINES,
    "Presets": PRESET_RUNS,
    "Exit threshold and inner recurrence": GRID,
    "One change at a time": ONE_BY_ONE,
    "Exit criteria": CRITERIA,
    "The prompt's own pass": PREFILL,
    "The lossless wavefront": SPECULATION,
}


def measure(model, tokenizer, chosen: dict[str, list], prompts, base: Run, settings: dict) -> dict:
    """Measure one row: accuracy on all problems, work and equal tokens on a few."""
    accuracies = {}
    for kind, some in chosen.items():
        room = {"max_new_tokens": 160 if kind == "worked" else 12}
        accuracies[kind] = accuracy(some, solve(model, tokenizer, some, 64, kind, **settings, **room))
    run = Run("run", settings | {"seed": 0})
    for input_ids in prompts:
        run_prompt(model, input_ids, run)
    return {
        **accuracies,
        "core_passes_per_token": run.passes_per_token,
        "recurrences_per_token": run.recurrences_per_token,
        "equal_share": run.equal_share(base),
    }


def speed(model, prompts, settings: dict) -> float:
    """Return the end-to-end speedup over autoregression at r = 32: the median over prompts."""
    base, run = Run("base", BASELINES["autoregressive, r = 32"] | {"seed": 0}), Run("run", settings | {"seed": 0})
    compare(model, prompts, [base, run])
    pairs = zip(base.seconds, run.seconds, base.sequences, run.sequences, strict=True)
    return statistics.median((slow / len(a)) / (fast / len(b)) for slow, fast, a, b in pairs)


def table(rows: dict[str, dict]) -> list[str]:
    lines = [
        "| setting | worked | mental | core passes per token | recurrences per token | equal tokens | speed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        cells = (
            f"{100 * row['worked']:.1f} %",
            f"{100 * row['mental']:.1f} %",
            f"{row['core_passes_per_token']:.2f}",
            f"{row['recurrences_per_token']:.1f}",
            f"{100 * row['equal_share']:.1f} %",
            f"{row['speed']:.2f}x",
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def draw(rows: dict[str, dict], path: Path) -> None:
    """Plot accuracy and work over the exit threshold, with one line per inner recurrence."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for inner in INNER:
        chosen = [rows[f"r' = {inner}, threshold {threshold}"] for threshold in THRESHOLDS]
        left.plot(THRESHOLDS, [100 * row["worked"] for row in chosen], marker="o", label=f"r' = {inner}")
        right.plot(THRESHOLDS, [row["recurrences_per_token"] for row in chosen], marker="o", label=f"r' = {inner}")
    left.set(xscale="log", xlabel="exit threshold", ylabel="worked problems solved, %", ylim=(0, 102))
    right.set(xscale="log", xlabel="exit threshold", ylabel="recurrences per token", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(THRESHOLDS, [str(threshold) for threshold in THRESHOLDS])
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def page(record: dict) -> str:
    """Return the text of docs/ablations.md."""
    rows = record["rows"]
    lines = [
        "# Ablations",
        "",
        "This page shows how each setting changes the accuracy and the work of the bundled checkpoint.",
        "",
        f"- *Worked* and *mental*: share of problems solved, out of {record['problems']} held-out problems of each "
        "kind in batches of 64.",
        "- *Core passes* and *recurrences* per token: a core pass is one call of the core on a whole wave; recurrences "
        f"count every position of the wave. Both are measured on {record['counted']} worked problems, decoded one at a "
        "time.",
        "- *Equal tokens*: share of tokens on these problems that equal those of autoregression at r = 32.",
        f"- *Speed*: end-to-end tokens per second relative to that baseline, on {record['timed']} of these problems. "
        "On a model this small it reflects overhead as much as the sampler: [performance](performance.md) has speeds "
        "at realistic sizes.",
        "",
        f"Measured by `scripts/run_ablations.py` on {record['machine']}, {record['date']}.",
        "",
        "![Accuracy and work over the exit threshold](images/ablations.png)",
    ]
    for title, settings in SECTIONS.items():
        lines += ["", f"## {title}", "", *table({name: rows[name] for name in settings})]
    return "\n".join(lines) + "\n"


def save(record: dict, store: Path) -> None:
    """Write the record so far atomically."""
    store.parent.mkdir(parents=True, exist_ok=True)
    partial = store.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(store)


def main(
    count: Annotated[int, typer.Option(help="Held-out problems of each kind, for accuracy.")] = 250,
    counted: Annotated[int, typer.Option(help="Worked problems for work and equal tokens.")] = 6,
    timed: Annotated[int, typer.Option(help="How many of those are also timed.")] = 2,
    threads: int = 2,
    output: Path = ROOT / "docs",
):
    torch.set_num_threads(threads)
    path = bundled_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    chosen = {kind: list(islice(problems(SEED, held_out=True, kind=kind), count)) for kind in KINDS}
    prompts = [tokenizer(p.prompt, return_tensors="pt").input_ids for p in chosen["worked"][:counted]]
    record = {
        "machine": f"{platform.machine()} CPU, torch {torch.__version__}, transformers {transformers.__version__}",
        "date": date.today().isoformat(),
        "problems": count,
        "counted": counted,
        "timed": timed,
        "rows": {},
    }
    store = output / "benchmarks" / "ablations.json"
    if store.exists():
        earlier = json.loads(store.read_text())
        if {**earlier, "rows": {}} == record:
            record = earlier
    base = Run("base", BASELINES["autoregressive, r = 32"] | {"seed": 0})
    for input_ids in prompts:
        run_prompt(model, input_ids, base)
    everything = {name: settings for section in SECTIONS.values() for name, settings in section.items()}
    for name, settings in tqdm(everything.items(), desc="ablations"):
        if name not in record["rows"]:
            record["rows"][name] = measure(model, tokenizer, chosen, prompts, base, settings)
            save(record, store)
            tqdm.write(f"{name}: {record['rows'][name]}")
    for name, settings in tqdm(everything.items(), desc="speed"):
        if "speed" not in record["rows"][name]:
            record["rows"][name]["speed"] = speed(model, prompts[:timed], settings)
            save(record, store)
    (output / "images").mkdir(exist_ok=True)
    draw(record["rows"], output / "images" / "ablations.png")
    (output / "ablations.md").write_text(page(record))


if __name__ == "__main__":
    typer.run(main)

"""Measure what each setting of diffusion forcing does to accuracy, speed and work, and write docs/ablations.md.

    python scripts/run_ablations.py

Accuracy is over held-out worked problems in batches (the answer to a mental one comes from the prompt's own pass, which
the settings of the wave do not touch). Speed is over a few of them one by one, interleaved with autoregression at full
depth in the same run. Writes docs/benchmarks/ablations.json after every setting, and goes on from it when run again.
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
from hf_diffusion_forcing.evaluation.measure import Run, accuracy, compare, solve
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.presets import PRESET_SAMPLERS

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
    "prefill_steps 8": PLAIN | {"prefill_steps": 8},
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
PRESET_RUNS = {f"preset {name}": {"sampler_preset": name} for name in PRESET_SAMPLERS}
SECTIONS = {
    "Baselines": BASELINES,
    "Presets": PRESET_RUNS,
    "Exit threshold and inner recurrence": GRID,
    "One change at a time": ONE_BY_ONE,
    "Exit criteria": CRITERIA,
}


def measure(model, tokenizer, chosen, prompts, settings: dict) -> dict:
    """One row: accuracy over all problems; speed, work and equal tokens over the timed ones."""
    answers = solve(model, tokenizer, chosen, batch_size=64, progress="solving", **settings)
    base = Run("base", BASELINES["autoregressive, r = 32"] | {"seed": 0})
    run = Run("run", settings | {"seed": 0})
    compare(model, prompts, [base, run])
    pairs = zip(base.seconds, run.seconds, base.sequences, run.sequences, strict=True)
    speedups = [(slow / len(a)) / (fast / len(b)) for slow, fast, a, b in pairs]
    return {
        "accuracy": accuracy(chosen, answers),
        "speedup": statistics.median(speedups),
        "core_passes_per_token": run.passes_per_token,
        "recurrences_per_token": run.recurrences_per_token,
        "equal_share": run.equal_share(base),
    }


def table(rows: dict[str, dict]) -> list[str]:
    lines = [
        "| setting | solved | speed | core passes a token | recurrences a token | equal tokens |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        cells = (
            f"{100 * row['accuracy']:.1f} %",
            f"{row['speedup']:.2f}x",
            f"{row['core_passes_per_token']:.2f}",
            f"{row['recurrences_per_token']:.1f}",
            f"{100 * row['equal_share']:.1f} %",
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def draw(rows: dict[str, dict], path: Path) -> None:
    """Accuracy and speed over the exit threshold, one line for each inner recurrence."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for inner in INNER:
        chosen = [rows[f"r' = {inner}, threshold {threshold}"] for threshold in THRESHOLDS]
        left.plot(THRESHOLDS, [100 * row["accuracy"] for row in chosen], marker="o", label=f"r' = {inner}")
        right.plot(THRESHOLDS, [row["speedup"] for row in chosen], marker="o", label=f"r' = {inner}")
    left.set(xscale="log", xlabel="exit threshold", ylabel="problems solved, %", ylim=(0, 102))
    right.set(xscale="log", xlabel="exit threshold", ylabel="speed over autoregression, r = 32", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(THRESHOLDS, [str(threshold) for threshold in THRESHOLDS])
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def page(record: dict) -> str:
    """docs/ablations.md."""
    rows = record["rows"]
    lines = [
        "# Ablations",
        "",
        f"What each setting does on the bundled checkpoint: {record['problems']} held-out worked problems for accuracy "
        f"(batches of 64), {record['timed']} of them one by one for speed, end to end with the prompt, over "
        "autoregression at r = 32 of the same run (median over problems). Measured by `scripts/run_ablations.py` on "
        f"{record['machine']}, {record['date']}. On so small a model speed shows overhead as much as the sampler; work "
        "(core passes, recurrences) does not depend on the machine.",
        "",
        "![Accuracy and speed over the exit threshold](images/ablations.png)",
    ]
    for title, settings in SECTIONS.items():
        lines += ["", f"## {title}", "", *table({name: rows[name] for name in settings})]
    return "\n".join(lines) + "\n"


def main(
    count: Annotated[int, typer.Option(help="Held-out problems for accuracy.")] = 500,
    timed: Annotated[int, typer.Option(help="Problems for speed.")] = 3,
    threads: int = 2,
    output: Path = ROOT / "docs",
):
    torch.set_num_threads(threads)
    path = bundled_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    chosen = list(islice(problems(SEED, held_out=True, kind="worked"), count))
    prompts = [tokenizer(p.prompt, return_tensors="pt").input_ids for p in chosen[:timed]]
    machine = f"{platform.machine()} CPU, {threads} threads, torch {torch.__version__}, transformers "
    record = {
        "machine": machine + transformers.__version__,
        "date": date.today().isoformat(),
        "problems": count,
        "timed": timed,
        "rows": {},
    }
    store = output / "benchmarks" / "ablations.json"
    if store.exists():
        earlier = json.loads(store.read_text())
        if {**earlier, "rows": {}} == record:
            record = earlier
    everything = {name: settings for section in SECTIONS.values() for name, settings in section.items()}
    for name, settings in tqdm(everything.items(), desc="ablations"):
        if name not in record["rows"]:
            record["rows"][name] = measure(model, tokenizer, chosen, prompts, settings)
            store.parent.mkdir(parents=True, exist_ok=True)
            partial = store.with_suffix(".partial")
            partial.write_text(json.dumps(record, indent=1) + "\n")
            partial.replace(store)
            tqdm.write(f"{name}: {record['rows'][name]}")
    (output / "images").mkdir(exist_ok=True)
    draw(record["rows"], output / "images" / "ablations.png")
    (output / "ablations.md").write_text(page(record))


if __name__ == "__main__":
    typer.run(main)

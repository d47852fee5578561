"""Measure the bundled checkpoint on held-out problems and write its model card.

    python scripts/measure_bundled.py

Writes docs/benchmarks/bundled.json, and the plot and the model card next to the weights. Quality and speed take minutes
each. Run the script on an otherwise idle machine.
"""

import json
import platform
import statistics
import sys
from collections import Counter, defaultdict
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
from hf_diffusion_forcing.evaluation.markdown import markdown_table
from hf_diffusion_forcing.evaluation.measure import accuracy, recurrences_to_converge, solve
from hf_diffusion_forcing.evaluation.problems import KINDS, Problem, problems
from hf_diffusion_forcing.evaluation.runs import Run, compare
from hf_diffusion_forcing.evaluation.timing import tick_overhead

ROOT = Path(__file__).parent.parent
DEPTHS = (1, 2, 4, 8, 16, 32)
HELD_OUT_SEED = 2026
ADAPTIVE = {"sampler": "adaptive", "exit_threshold": 0.03}
FORCING = {"sampler": "diffusion_forcing", "wavefront": 32, "exit_threshold": 0.03}
SAMPLERS = {
    "autoregressive, r = 32": {"sampler": "autoregressive"},
    "autoregressive, r = 16": {"sampler": "autoregressive", "num_steps": 16},
    "autoregressive, r = 8": {"sampler": "autoregressive", "num_steps": 8},
    "autoregressive, r = 4": {"sampler": "autoregressive", "num_steps": 4},
    "adaptive": ADAPTIVE,
    "diffusion_forcing, r' = 4": FORCING | {"inner_recurrence": 4},
    "diffusion_forcing, r' = 2": FORCING | {"inner_recurrence": 2},
    "diffusion_forcing, r' = 1": FORCING | {"inner_recurrence": 1},
}


def by_length(chosen: list[Problem], answers: list[str]) -> dict[str, float]:
    """Return the accuracy per kind and length, as in {"mental 3": 0.9}."""
    groups = defaultdict(list)
    for problem, answer in zip(chosen, answers, strict=True):
        groups[f"{problem.kind} {problem.length}"].append((problem, answer))
    return {name: accuracy(*map(list, zip(*pairs, strict=True))) for name, pairs in sorted(groups.items())}


def measure_quality(model, tokenizer, chosen: dict[str, list[Problem]]) -> dict:
    """Measure the accuracy of autoregression at every depth, and of the other samplers, on all problems."""
    table = {}
    settings = {f"autoregressive, r = {r}": {"sampler": "autoregressive", "num_steps": r} for r in DEPTHS}
    settings |= {name: kwargs for name, kwargs in SAMPLERS.items() if kwargs["sampler"] != "autoregressive"}
    for name, kwargs in settings.items():
        row = {}
        for kind in KINDS:
            room = {"max_new_tokens": 160 if kind == "worked" else 12}
            label = f"{name}, {kind}"
            answers = solve(model, tokenizer, chosen[kind], batch_size=64, progress=label, **kwargs, **room)
            row[kind] = accuracy(chosen[kind], answers)
            row |= by_length(chosen[kind], answers)
        row["all"] = statistics.mean(row[kind] for kind in KINDS)
        table[name] = row
        tqdm.write(f"{name}: " + ", ".join(f"{kind} {100 * row[kind]:.1f} %" for kind in (*KINDS, "all")))
    return table


def measure_convergence(model, tokenizer, chosen: dict[str, list[Problem]], count: int = 100) -> dict:
    """Measure how many recurrences the positions of answers need, grouped by predicted token: digits or words."""
    needed = defaultdict(list)
    for kind in KINDS:
        for problem in tqdm(chosen[kind][:count], desc=f"convergence, {kind}", leave=False):
            prompt = tokenizer(problem.prompt).input_ids
            ids = prompt + tokenizer(problem.answer).input_ids
            depths = recurrences_to_converge(model, torch.tensor([ids]))[0].tolist()
            for position in range(len(prompt) - 1, len(ids) - 1):
                word = tokenizer.decode(ids[position + 1]).strip()
                needed[f"{kind}, {'digits' if word.isdigit() else 'words'}"].append(depths[position])
    return dict(needed)


def measure_speed(model, tokenizer, chosen: dict[str, list[Problem]], count: int, repeats: int) -> dict:
    """Measure every sampler on the same worked problems, in turns; speedups are medians over repeats."""
    prompts = [tokenizer(p.prompt, return_tensors="pt").input_ids for p in chosen["worked"][:count]]
    rounds = []
    for repeat in range(repeats):
        runs = [Run(name, kwargs | {"seed": 0}) for name, kwargs in SAMPLERS.items()]
        compare(model, tqdm(prompts, desc=f"speed {repeat + 1}/{repeats}", leave=False), runs)
        rounds.append(runs)
    table = {}
    for column, name in enumerate(SAMPLERS):
        speedups = [runs[column].tokens_per_second / runs[0].tokens_per_second for runs in rounds]
        run, base = rounds[0][column], rounds[0][0]
        table[name] = {
            "speedup": statistics.median(speedups),
            "speedup_range": [min(speedups), max(speedups)],
            "core_passes_per_token": run.passes_per_token,
            "equal_share": run.equal_share(base),
        }
    return table


def draw(convergence: dict[str, list[int]], quality: dict, path: Path) -> None:
    """Plot recurrences to convergence as cumulative shares, and accuracy over depth."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for name, depths in sorted(convergence.items()):
        shares = [sum(d <= r for d in depths) / len(depths) for r in range(1, 33)]
        left.step(range(1, 33), shares, where="post", label=name)
    left.set(xlabel="recurrences", ylabel="share of positions settled (< 0.03)", ylim=(0, 1.02))
    left.legend(fontsize=8)
    for kind in KINDS:
        right.plot(DEPTHS, [100 * quality[f"autoregressive, r = {r}"][kind] for r in DEPTHS], marker="o", label=kind)
    right.set(xlabel="recurrences r", ylabel="problems solved, %", xscale="log", ylim=(0, 102))
    right.set_xticks(DEPTHS, [str(r) for r in DEPTHS])
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def quality_table(quality: dict) -> str:
    lengths = [f"mental {n}" for n in range(1, 9)]
    header = ["decoding", "worked", "mental", "all", *lengths]
    return "\n".join(
        markdown_table(
            header,
            [[name, *(f"{100 * row[column]:.1f}" for column in header[1:])] for name, row in quality.items()],
        )
    )


def convergence_table(convergence: dict[str, list[int]]) -> str:
    rows = []
    for name, depths in sorted(convergence.items()):
        cuts = statistics.quantiles(depths, n=20)
        rows.append([name, str(len(depths)), *(f"{cuts[i]:.0f}" for i in (0, 4, 9, 14, 18))])
    return "\n".join(markdown_table(["positions that predict", "count", "5 %", "25 %", "median", "75 %", "95 %"], rows))


def speed_table(speed: dict, quality: dict) -> str:
    rows = [
        [
            name,
            f"{row['speedup']:.2f}x ({row['speedup_range'][0]:.2f} to {row['speedup_range'][1]:.2f})",
            f"{row['core_passes_per_token']:.1f}",
            f"{100 * row['equal_share']:.1f} %",
            f"{100 * quality[name]['worked']:.1f} %",
            f"{100 * quality[name]['mental']:.1f} %",
        ]
        for name, row in speed.items()
    ]
    header = [
        "decoding",
        "speed, end to end",
        "core passes per token",
        "equal tokens",
        "worked solved",
        "mental solved",
    ]
    return "\n".join(markdown_table(header, rows))


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags:
- recurrent-depth
- diffusion-forcing
---

# The bundled checkpoint

This is a recurrent-depth transformer in the Huginn layout ({layers} blocks in prelude, core and coda, {parameters:.2f}M
parameters, float32). It was trained from scratch on {kinds} arithmetic problems, so that diffusion forcing can be
tried and tested without a download. It can answer only such problems.

*Worked* problems are word problems whose answers show every step. *Mental* problems are chains of 1 to 8 operations on
the last digit, and their answer is only that digit. No sum occurs in both training and held-out problems: the split is
a hash of the numbers and operations, and a test checks it.

```python
import hf_diffusion_forcing
from transformers import AutoModelForCausalLM, AutoTokenizer

path = hf_diffusion_forcing.bundled_checkpoint()
model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
inputs = tokenizer("Q: Start at 3 + 2. Last digit?\\nA:", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, sampler="diffusion_forcing")[0]))
```

## Accuracy by depth

Held-out problems solved, in percent ({count} of each kind; greedy; seed 0):

{quality}

Recurrences until the state of a position moves by less than 3 % (teacher forcing, at most {limit}), grouped by the
predicted token:

{convergence}

![Convergence and accuracy](convergence.png)

## Speed

{speed_count} worked problems at batch 1, end to end (including the prompt). Speeds are medians and ranges of
{repeats} repeats, relative to the first row of the same run; the samplers take turns on every prompt. On so small a
model, speed reflects overhead as much as the sampler.

{speed}

Share of the time of a tick that is spent outside the forward passes of the model: {overhead}.

Measured by `scripts/measure_bundled.py` on {machine}, {today}.

## Training

{training}

Decoding uses `num_steps=32`. `scripts/train_bundled.py` trains with random depth and truncated backpropagation
(arXiv 2502.05171), on worked and mental problems together. Mental chains grow by one operation when the model solves
the longest ones. At each operand of a mental chain, an extra target trains the model to predict the running digit. This
digit is never part of a text; it teaches the latent states what to store.
"""


def main(
    count: Annotated[int, typer.Option(help="Held-out problems of each kind.")] = 500,
    speed_count: Annotated[int, typer.Option(help="Worked problems to time.")] = 10,
    repeats: Annotated[int, typer.Option(help="Repeats of the timing.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    training: Annotated[
        str, typer.Option(help="The sentence on training in the card.")
    ] = "Trained by `scripts/train_bundled.py` at its defaults.",
):
    torch.set_num_threads(threads)
    path = Path(bundled_checkpoint())
    if not path.is_relative_to(ROOT):
        sys.exit(f"{path} is an installed copy, not the checkpoint of the checkout: run the script with PYTHONPATH=.")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    chosen = {kind: list(islice(problems(HELD_OUT_SEED, held_out=True, kind=kind), count)) for kind in KINDS}

    speed = measure_speed(model, tokenizer, chosen, speed_count, repeats)
    overhead = {
        f"r' = {inner}": statistics.median(
            tick_overhead(model, tokenizer(p.prompt, return_tensors="pt").input_ids, inner_recurrence=inner, seed=0)
            for p in chosen["worked"][:speed_count]
        )
        for inner in (4, 1)
    }
    convergence = measure_convergence(model, tokenizer, chosen)
    quality = measure_quality(model, tokenizer, chosen)

    machine = f"{platform.machine()} CPU, {threads} threads, torch {torch.__version__}, transformers "
    machine += transformers.__version__
    record = {
        "machine": machine,
        "date": date.today().isoformat(),
        "problems": count,
        "quality": quality,
        "speed": speed,
        "tick_overhead": overhead,
        "recurrences_to_converge": {name: dict(sorted(Counter(d).items())) for name, d in convergence.items()},
    }
    target = ROOT / "docs" / "benchmarks" / "bundled.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1) + "\n")
    draw(convergence, quality, path / "convergence.png")
    config = model.config
    layers = (config.n_layers_in_prelude, config.n_layers_in_recurrent_block, config.n_layers_in_coda)
    (path / "README.md").write_text(
        CARD.format(
            layers="/".join(map(str, layers)),
            parameters=sum(p.numel() for p in model.parameters()) / 1e6,
            kinds="two kinds of",
            count=count,
            quality=quality_table(quality),
            limit=64,
            convergence=convergence_table(convergence),
            speed_count=speed_count,
            repeats=repeats,
            speed=speed_table(speed, quality),
            overhead=" and ".join(f"{100 * share:.0f} % ({name})" for name, share in overhead.items()),
            machine=machine,
            today=date.today().isoformat(),
            training=training,
        )
    )
    print(quality_table(quality), convergence_table(convergence), speed_table(speed, quality), sep="\n\n")


if __name__ == "__main__":
    typer.run(main)

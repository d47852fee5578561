"""Draw the pictures of docs/theory.md into docs/images/.

    python scripts/draw_theory.py

The script first measures path independence, and shallow decoding after a deep prompt, with the bundled checkpoint and
held-out problems. It writes the results to docs/benchmarks/theory.json; `--redraw` reuses that file. Costs are formulas
that use the shape of Huginn-0125 and the cost model of the package. Other figures come from docs/benchmarks/.
"""

import json
import platform
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Annotated

import matplotlib
import torch
import transformers
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import RavenConfig, bundled_checkpoint
from hf_diffusion_forcing.evaluation.measure import accuracy, solve
from hf_diffusion_forcing.evaluation.path_independence import approaches
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.roofline import bytes_read, roofline

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
BENCHMARKS = ROOT / "docs" / "benchmarks"
HUGINN = ROOT / "tests" / "fixtures" / "published" / "huginn-0125"
HELD_OUT_SEED = 2026
"""The seed of the problems in scripts/measure_bundled.py."""

# The palette of Okabe and Ito is distinct with any colour vision. Lines also differ in dashes or markers.
BLUE, ORANGE, GREEN, PINK, BLACK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#333333"
DASHES = ("-", "--", "-.", ":")


def log_axis(axes: Axes) -> None:
    """Make the x axis logarithmic with base 2 and plain numbers."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")


# --- path independence ---


def measure_path_independence(model, tokenizer, count: int, steps: int, wrong_steps: int) -> dict:
    """Measure quartiles of `approaches`, and recurrences until a state is within 3 % of its end, on answers."""
    stream = problems(0, held_out=True, kind="worked")
    distances: dict[str, list[torch.Tensor]] = {}
    for number in tqdm(range(count), desc="positions"):
        problem = next(stream)
        prompt = tokenizer(problem.prompt, return_tensors="pt").input_ids
        ids = tokenizer(problem.prompt + problem.answer, return_tensors="pt").input_ids
        # A position in the answer, different in every text.
        position = prompt.shape[1] + 7 * number % (ids.shape[1] - prompt.shape[1])
        for name, distance in approaches(model, ids, position, steps, wrong_steps).items():
            distances.setdefault(name, []).append(distance)
    record = {}
    for name, curves in distances.items():
        stacked = torch.stack(curves)
        near = (stacked < 0.03).int().argmax(dim=1).float()
        record[name] = {
            "quartiles": stacked.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0).tolist(),
            "recurrences_to_3_percent": {"mean": near.mean().item(), "most": int(near.max())},
        }
    return {"positions": count, "starts": record}


def draw_path_independence(record: dict) -> Figure:
    """Plot medians and quartiles over positions of held-out worked problems."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for (name, start), colour, dash in zip(record["starts"].items(), (BLUE, GREEN, ORANGE), DASHES, strict=False):
        low, median, high = start["quartiles"]
        axes.plot(median, dash, color=colour, label=name)
        axes.fill_between(range(len(median)), low, high, color=colour, alpha=0.18, linewidth=0)
    axes.axhline(0.03, color=BLACK, linewidth=0.6)
    axes.annotate("3 %", (len(median) - 1, 0.03), (0, 3), textcoords="offset points", ha="right", fontsize=8)
    axes.set_yscale("log")
    axes.set_xlabel("recurrences with the true token")
    axes.set_ylabel("distance from the end, over its norm")
    axes.legend(title="state started from", frameon=False)
    title = f"{record['positions']} positions of held-out problems: median and quartiles"
    axes.set_title(title, fontsize=10, loc="left")
    return figure


# --- what ticks cost ---


def draw_width(num_steps: int = 32) -> Figure:
    """Plot the measured cost of wider waves, and the speedups predicted for machines of any balance."""
    config = RavenConfig.from_pretrained(HUGINN)
    core, ends = config.n_layers_in_recurrent_block, config.n_layers_in_prelude + config.n_layers_in_coda
    record = json.loads((BENCHMARKS / "speed_wavefront.json").read_text())
    table = next(each for each in record["tables"] if "nothing converges" in each["title"])
    widths = [row["positions_per_core_pass"] for row in table["rows"] if "full wave" in row["sampler"]]
    ticks = [row["ms_per_tick"] for row in table["rows"] if "full wave" in row["sampler"]]

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    measured, *panels = figure.subplots(1, 3)
    measured.plot(widths, [tick / ticks[0] for tick in ticks], "o", color=BLACK, label="measured")
    for balance, colour, dash in zip((8, 16, 32), (BLUE, ORANGE, GREEN), DASHES, strict=False):
        drawn = (1, balance, 128)
        measured.plot(drawn, [max(1, w / balance) for w in drawn], dash, color=colour, label=f"roofline, I = {balance}")
    measured.set_xlim(0, 110)
    measured.set_ylim(0, 12)
    measured.set_xlabel("positions in a tick")
    measured.set_ylabel("time of a tick, over that of one position")
    measured.set_title("A tick's cost over its width", fontsize=10, loc="left")

    balances = [2 ** (power / 8) for power in range(65)]
    for axes, recurrences in zip(panels, (num_steps, 8), strict=True):
        for inner, colour, dash in zip((1, 2, 4, 8), (BLUE, ORANGE, GREEN, PINK), DASHES, strict=True):
            speedups = []
            for balance in balances:
                curve = roofline(balance, core, ends)
                token = curve.seconds_per_tick(max(recurrences / inner, 1), inner)
                speedups.append(curve.seconds_per_tick(1, num_steps) / token)
            axes.plot(balances, speedups, dash, color=colour, label=f"r' = {inner}")
        axes.axhline(1, color=BLACK, linewidth=0.6)
        log_axis(axes)
        axes.set_xlabel("I (positions)")
        axes.set_ylabel("speedup over autoregression")
        axes.set_ylim(0, 17.5)
        axes.set_title(f"A token needs d = {recurrences} recurrences", fontsize=10, loc="left")
    for axes in (measured, *panels):
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_context(num_steps: int = 32) -> Figure:
    """Plot ideal speedups of Huginn-0125 over the context length, by bytes read."""
    # With KV sharing, a wave reads the entries once for all its positions. Without, positions at different recurrences
    # read their own entries, and the coda reads its entries twice: for drafts and for final tokens.
    config = RavenConfig.from_pretrained(HUGINN)
    shared = bytes_read(config, lambda passes: (1, passes, 1))
    by_depth = bytes_read(config, lambda passes: (1, num_steps, 2))
    contexts = list(range(64, 4097, 64))
    baseline = [shared(num_steps, context) for context in contexts]

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    lines = [("diffusion_forcing, r' = 1", shared, 1), ("diffusion_forcing, r' = 4", shared, 4)]
    lines += [("speculative_wavefront, k = 1", by_depth, 1), ("speculative_wavefront, k = 2", by_depth, 2)]
    for (name, tick, passes), colour, dash in zip(lines, (BLUE, GREEN, ORANGE, PINK), DASHES, strict=True):
        speedups = [token / tick(passes, context) for token, context in zip(baseline, contexts, strict=True)]
        axes.plot(contexts, speedups, dash, color=colour, label=name)
    axes.set_ylim(0, None)
    axes.set_xlabel("context (positions)")
    axes.set_ylabel("bytes of autoregression over bytes of a tick")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title("Huginn-0125 in bfloat16, r = 32, batch 1: where attention's bytes stop it", fontsize=10, loc="left")
    return figure


# --- accuracy at equal work ---


def measure_shallow_decoding(model, tokenizer, count: int, depths: tuple[int, ...] = (1, 2, 4, 8)) -> dict[str, float]:
    """Measure the share of worked problems solved with a full-depth prompt and only a few recurrences per new token.

    Autoregression at a small r also reads its prompt at that depth, but a wave reads it at full depth. This separates
    the two effects.
    """
    chosen = list(islice(problems(HELD_OUT_SEED, held_out=True, kind="worked"), count))
    solved = {}
    for depth in depths:
        answers = solve(
            model,
            tokenizer,
            chosen,
            batch_size=64,
            progress=f"{depth} recurrences per token",
            sampler="adaptive",
            exit_criterion={"name": "fixed", "steps": depth},
            max_new_tokens=160,
        )
        solved[str(depth)] = accuracy(chosen, answers)
    return solved


def draw_same_time(deep_prompt: dict[str, float]) -> Figure:
    """Plot problems solved over core passes per token. scripts/measure_bundled.py measured the other two lines.

    Args:
        deep_prompt: per number of recurrences per token, the share solved after a prompt at full depth.
    """
    record = json.loads((BENCHMARKS / "bundled.json").read_text())
    quality, speed = record["quality"], record["speed"]
    shallow = {int(name.rpartition(" ")[2]): each for name, each in quality.items() if name.startswith("autoreg")}
    waves = [name for name in quality if name.startswith("diffusion_forcing")]
    lines = {
        "autoregressive, r recurrences of every position": [(r, each["worked"]) for r, each in shallow.items()],
        "the same after a prompt of 32": [(int(r), share) for r, share in deep_prompt.items()],
        # Core passes of a wave are measured.
        "diffusion_forcing, r' = 1, 2, 4": [(speed[n]["core_passes_per_token"], quality[n]["worked"]) for n in waves],
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    styles = ((ORANGE, "s--"), (PINK, "^:"), (BLUE, "o-"))
    for (name, points), (colour, style) in zip(lines.items(), styles, strict=True):
        passes, shares = zip(*points, strict=True)
        axes.plot(passes, [100 * share for share in shares], style, color=colour, label=name)
    log_axis(axes)
    axes.set_ylim(0, 104)
    axes.set_xlabel("core passes a token")
    axes.set_ylabel("worked problems solved, %")
    axes.legend(frameon=False, loc="lower right")
    title = f"{record['problems']} held-out problems, the bundled checkpoint, {record['date']}"
    axes.set_title(title, fontsize=10, loc="left")
    return figure


def measure(count: int, steps: int, wrong_steps: int, solved: int) -> dict:
    """Measure the bundled checkpoint; the result is the content of theory.json."""
    path = bundled_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    return {
        "machine": f"{platform.machine()} CPU, torch {torch.__version__}, transformers {transformers.__version__}",
        "date": date.today().isoformat(),
        "path_independence": measure_path_independence(model, tokenizer, count, steps, wrong_steps),
        "solved_after_deep_prompt": measure_shallow_decoding(model, tokenizer, solved),
    }


def main(
    output: Annotated[Path, typer.Option(help="Folder for the pictures.")] = IMAGES,
    count: Annotated[int, typer.Option(min=1, help="Positions in the picture of path independence.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Recurrences in that picture.")] = 24,
    wrong_steps: Annotated[int, typer.Option(min=1, help="Recurrences with the wrong token.")] = 8,
    solved: Annotated[int, typer.Option(min=1, help="Problems for shallow decoding.")] = 500,
    redraw: Annotated[bool, typer.Option("--redraw", help="Measure nothing: draw the stored theory.json.")] = False,
):
    """Measure, write docs/benchmarks/theory.json, and draw all pictures."""
    target = BENCHMARKS / "theory.json"
    if not redraw:
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(measure(count, steps, wrong_steps, solved), indent=1) + "\n")
        partial.replace(target)
    record = json.loads(target.read_text())
    pictures = {
        "theory_path_independence": draw_path_independence(record["path_independence"]),
        "theory_width": draw_width(),
        "theory_context": draw_context(),
        "theory_same_time": draw_same_time(record["solved_after_deep_prompt"]),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        picture = output / f"{name}.svg"
        # Salt and date are fixed, so drawing the same picture again changes no file.
        with matplotlib.rc_context({"svg.hashsalt": name}):
            figure.savefig(picture, metadata={"Date": None})
        Console().print(f"wrote {picture}", highlight=False)


if __name__ == "__main__":
    typer.run(main)

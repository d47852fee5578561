"""Measure the lossless wavefront on a model of two loops, which cannot be twice as fast without guesses.

    python scripts/train_bundled.py --family nanbeige --output runs/two-loops --steps 1200 --layers 0/4/0 \
        --mean-recurrence 2 --decoding-depth 2 --worked-batch 8 --mental-tokens 0 --mixed-precision no
    hf-diffusion-forcing fit runs/two-loops --dataset worked
    python scripts/measure_two_loops.py runs/two-loops

Counts core passes of held-out worked problems, greedily, in float32. Writes docs/benchmarks/two_loops.json and
two_loops.md.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from measure_heads import ALONE, KINDS, LOOKUP, ONE, right_share
from measure_lossless import counted
from measured_parts import OUTPUT, guess_counts, measure_part, signature
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing.evaluation.measure import accuracy, solve
from hf_diffusion_forcing.evaluation.problems import problem_prompts, problems

WAYS = {"none": (ONE, LOOKUP), "readout": (ONE, LOOKUP), "extra tokens": (ALONE, LOOKUP), "both": (ALONE, LOOKUP)}
SOLVED_OF = 100


def rows(count: int, room: int, checkpoint: Path) -> Iterator[dict]:
    """Yield the counts of every way to draft, with every kind of heads, and first the share of problems solved."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    drawn = problems(2027, held_out=True, kind="worked")
    chosen = [next(drawn) for _ in range(SOLVED_OF)]
    answers = solve(model, tokenizer, chosen, sampler="autoregressive", max_new_tokens=160)
    yield {"solved": accuracy(chosen, answers), "solved_of": SOLVED_OF}
    fitted, asked = model.decoding_heads, problem_prompts(tokenizer, count, seed=2027, kind="worked")
    for kind, parts in KINDS.items():
        model.decoding_heads = fitted.only(*parts) if parts else None
        ways = [{"draft_depth": 1, "draft_tokens": tokens, "draft_source": source} for tokens, source in WAYS[kind]]
        for row in counted("worked problems", model, asked, room, ways):
            yield row | {"heads": kind}


def page(part: dict) -> list[str]:
    solved, *counts = part["rows"]
    lines = [
        "## Core passes",
        "",
        f"{signature(part)} Four layers that run twice, as in Nanbeige, trained on worked problems; autoregression "
        f"solves {solved['solved']:.0%} of {solved['solved_of']}. r = 2 and k = 1; m is the most positions that enter "
        "in a tick. *Right drafts* are those after one loop. *Fewer* is autoregression's core passes over those of the "
        "wavefront.",
        "",
        "| m | source | heads | changed | right drafts | core passes per token | fewer | guesses |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in counts:
        passes = row["core_passes_per_token"]
        lines.append(
            f"| {row['draft_tokens']} | {row['draft_source'] or ''} | {row['heads']} | {row['changed']} of "
            f"{row['texts']} | {right_share(row):.1%} | {passes:.2f} | {row['num_steps'] / passes:.2f}x | "
            f"{guess_counts(row)} |"
        )
    return lines


def main(
    checkpoint: Annotated[Path, typer.Argument(help="The trained model, with fitted heads.")],
    count: Annotated[int, typer.Option(help="Texts.")] = 24,
    max_new_tokens: int = 128,
    output: Path = OUTPUT,
):
    parts = {"counts": (partial(rows, checkpoint=checkpoint), page)}
    command = f"scripts/measure_two_loops.py runs/two-loops --count {count} --max-new-tokens {max_new_tokens}"
    stored = output / "two_loops.json"
    typer.echo(measure_part(stored, "Lossless on two loops", parts, "counts", command, count, max_new_tokens))


if __name__ == "__main__":
    typer.run(main)

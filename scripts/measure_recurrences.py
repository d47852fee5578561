"""Measure exit criteria and the settling estimate on the two trained checkpoints, one recurrence at a time.

    python scripts/measure_recurrences.py

Texts are given: held-out problems with the model's own answers, and held-out Python source. Every criterion sees the
same states. A criterion is judged by the recurrences after which it is met, and by how many of the readouts there
equal those at full depth. Writes docs/benchmarks/recurrences.json, the tables of docs/inspect.md and docs/hooks.md,
and the figure of docs/inspect.md.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Annotated, ClassVar

import torch
import typer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import ExitCriterion, bundled_checkpoint
from hf_diffusion_forcing.evaluation.inspection import inspect_prompts, inspect_recurrences
from hf_diffusion_forcing.evaluation.markdown import markdown_table
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.provenance import describe_machine, provenance, versions
from hf_diffusion_forcing.evaluation.python_source import source_prompts
from hf_diffusion_forcing.evaluation.recurrence_insight import RecurrenceInsight
from hf_diffusion_forcing.files import write_file
from hf_diffusion_forcing.hooks.settling import remaining_sway
from hf_diffusion_forcing.visualization import plot_insight

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SEED = 2026
LEVELS = (0.99, 0.995, 0.999)
"""Shares of readouts that must equal those at full depth."""


@dataclass
class ConfidenceCriterion(ExitCriterion):
    """The likeliest token's probability lacks less than `threshold` of 1, whatever the states do."""

    name: ClassVar[str] = "confidence"
    needs_logits: ClassVar[bool] = True
    threshold: float = 0.1

    def __call__(self, refinement):
        refinement.exit_values = lack = 1 - refinement.logits.float().softmax(-1).amax(-1)
        return lack < self.threshold


CRITERIA: dict[str, str | ExitCriterion] = {
    "latent_difference": "latent_difference",
    "latent_acceleration": "latent_acceleration",
    "cosine": "cosine",
    "entropy": "entropy",
    "kl": "kl",
    "confidence (not in the package)": ConfidenceCriterion(),
}


def problem_texts(count: int) -> tuple:
    """The bundled checkpoint, and the texts as a call that inspects them by a criterion."""
    path = bundled_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    prompts = [each.prompt for each in islice(problems(SEED, held_out=True), count)]
    batches = [prompts[first : first + 8] for first in range(0, count, 8)]
    ids = []
    for batch in batches:
        inputs = tokenizer(batch, return_tensors="pt", padding=True)
        sequences = model.generate(**inputs, sampler="autoregressive", max_new_tokens=160, seed=[0] * len(batch))
        ids += [row[row != tokenizer.pad_token_id][None] for row in sequences]
    return model, ids


def source_texts(count: int) -> tuple:
    path = ROOT / "tests/fixtures/python-source"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    return model, source_prompts(AutoTokenizer.from_pretrained(path), count, 256, seed=SEED)


def inspected(model, texts: Sequence[torch.Tensor], criterion) -> RecurrenceInsight:
    return RecurrenceInsight.joined(
        [inspect_recurrences(model, ids, exit_criterion=criterion, seed=0) for ids in texts]
    )


def cheapest(insight: RecurrenceInsight, values: torch.Tensor) -> dict[float, dict[str, float] | None]:
    """For each level, the threshold with the fewest recurrences whose readouts at the exit agree that often.

    Args:
        values: float32 [num_steps, n], compared with a threshold; a position that is never below exits at the end.
    """
    steps = insight.num_steps
    finite = values[values.isfinite()]
    best: dict[float, dict[str, float] | None] = dict.fromkeys(LEVELS)
    equal = insight.readouts == insight.readouts[-1]
    for threshold in finite.quantile(torch.linspace(0.002, 0.998, 250)).unique().tolist():
        below = (values < threshold) | (torch.arange(steps)[:, None] == steps - 1)
        exits = below.int().argmax(0)
        agreement = equal.gather(0, exits[None]).float().mean().item()
        recurrences = exits.float().mean().item() + 1
        for level in LEVELS:
            found = best[level]
            if agreement >= level and (found is None or recurrences < found["recurrences"]):
                best[level] = {"recurrences": recurrences, "threshold": threshold, "agreement": agreement}
    return best


def settling(insight: RecurrenceInsight) -> list[dict[str, float]]:
    """By depth: readouts that are settled, those of them that change later, and the same of all readouts."""
    changed = insight.readouts != insight.readouts[-1]
    rows = []
    for depth in (2, 3, 4, 6, 8, 12, 16):
        settled, later = insight.settled[depth - 1], changed[depth - 1]
        rows.append(
            {
                "recurrences": depth,
                "settled": settled.float().mean().item(),
                "settled_changed": later[settled].float().mean().item(),
                "all_changed": later.float().mean().item(),
                "converged": insight.exits[depth - 1].float().mean().item(),
            }
        )
    return rows


def replace(page: Path, name: str, lines: list[str]) -> None:
    """Put lines between two comments of a page."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    part = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    text, replaced = part.subn(lambda _: begin + "\n" + "\n".join(lines) + "\n\n" + end, page.read_text())
    if not replaced:
        raise typer.BadParameter(f"{page} has no section marked {name}: add its comments to the page.")
    write_file(page, text)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def write_tables(record: dict) -> None:
    origin = f"Measured by `scripts/measure_recurrences.py` in float32 on {provenance(record)}."
    domains = record["domains"]
    rows = []
    for name in next(iter(domains.values()))["criteria"]:
        cells = [name]
        for domain in domains.values():
            for level in LEVELS:
                found = domain["criteria"][name][str(level)]
                cells.append("-" if found is None else f"{found['recurrences']:.2f} ({found['threshold']:.2g})")
        rows.append(cells)
    headings = ["criterion", *(f"{domain}, {percent(level)}" for domain in domains for level in LEVELS)]
    replace(DOCS / "hooks.md", "criteria", [*markdown_table(headings, rows), "", origin])
    lines = []
    for title, domain in domains.items():
        headings = [f"{title}: recurrences", "settled", "changed later", "of all, changed later", "criterion met"]
        rows = [
            [
                str(row["recurrences"]),
                percent(row["settled"]),
                percent(row["settled_changed"], 2),
                percent(row["all_changed"], 2),
                percent(row["converged"]),
            ]
            for row in domain["settling"]
        ]
        lines += [*markdown_table(headings, rows), ""]
    replace(DOCS / "inspect.md", "settling", [*lines, origin])


def main(
    count: Annotated[int, typer.Option(help="Problems, and twice the windows of source.")] = 48,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
):
    torch.set_num_threads(threads)
    record: dict = {"count": count, "seed": SEED, "versions": versions(), "date": date.today().isoformat()}
    record["domains"] = {}
    for title, (model, texts) in {"problems": problem_texts(count), "source": source_texts(count // 2)}.items():
        record["machine"] = describe_machine(model)
        found: dict = {"criteria": {}}
        for name, criterion in tqdm(CRITERIA.items(), desc=title):
            insight = inspected(model, texts, criterion)
            found["criteria"][name] = {str(k): v for k, v in cheapest(insight, insight.exit_values).items()}
            if criterion == "latent_difference":
                found["positions"] = len(insight)
                found["settling"] = settling(insight)
                remaining = remaining_sway(insight.sways, insight.contractions)
                estimate = {str(k): v for k, v in cheapest(insight, remaining).items()}
        found["criteria"]["the settling estimate"] = estimate
        record["domains"][title] = found
    write_file(DOCS / "benchmarks" / "recurrences.json", json.dumps(record, indent=1) + "\n")
    write_tables(record)
    path = bundled_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    prompts = [each.prompt for each in islice(problems(7, held_out=True), 6)]
    figure = plot_insight(inspect_prompts(model, tokenizer, prompts, max_new_tokens=40, progress=False))
    figure.savefig(DOCS / "images" / "inspect.png", dpi=90)


if __name__ == "__main__":
    typer.run(main)

"""Measure the exit criterion "settling" in generate() against others at equal agreement with full depth.

    python scripts/measure_settling.py

Each criterion's threshold is chosen on one set of held-out texts: the loosest of a list at which a given share of the
tokens equals those of autoregression at r = 32. What it costs, and how many tokens equal there, is reported on another
set. Core passes of diffusion forcing are those that a row needs alone. The counts need no quiet machine; with --speed
the chosen settings are then timed, so keep the machine idle. Writes docs/benchmarks/settling.json and the table of
docs/hooks.md.
"""

import json
from datetime import date
from itertools import islice
from typing import Annotated, Any

import torch
import typer
from measure_recurrences import DOCS, ROOT, SEED, percent, replace
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.markdown import markdown_table
from hf_diffusion_forcing.evaluation.measure import accuracy, equal_tokens
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.provenance import describe_machine, provenance, versions
from hf_diffusion_forcing.evaluation.python_source import source_prompts
from hf_diffusion_forcing.evaluation.runs import Run, compare
from hf_diffusion_forcing.evaluation.timing import timed_generate
from hf_diffusion_forcing.files import write_file
from hf_diffusion_forcing.settings.presets import preset

BATCH = 48
LEVELS = (0.95, 0.99)
"""Shares of tokens that must equal autoregression's on the texts that choose a threshold."""
FULL = {"sampler": "autoregressive", "num_steps": 32}
SAMPLERS = {
    "adaptive": {"sampler": "adaptive"},
    **{
        f"preset {name}": {"sampler": "diffusion_forcing", **preset(name, "diffusion_forcing")}
        for name in ("fast", "quality")
    },
}
THRESHOLDS = {
    "latent_difference": (0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5),
    "kl": (1e-5, 1e-4, 1e-3, 0.01),
    "settling": (0.003, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5),
}


class Domain:
    """A checkpoint and two sets of prompts, int64 [1, length] each, which autoregression continues.

    Attributes:
        prompts: those that choose thresholds, and those that are reported.
        answers: per set, the problems; empty for source.
    """

    def __init__(self, model, tokenizer, prompts: list, max_new_tokens: int, answers: list):
        self.model, self.tokenizer, self.prompts, self.answers = model, tokenizer, prompts, answers
        self.room = {"max_new_tokens": max_new_tokens, "pad_token_id": tokenizer.pad_token_id or 0}
        self.expected = [self.decode(FULL, which)["rows"] for which in (0, 1)]

    def decode(self, settings: dict[str, Any], which: int) -> dict[str, Any]:
        """Rows, and recurrences and core passes in total, each row's as if it were alone."""
        rows, recurrences, core_passes = [], 0, 0
        traced = {"return_trace": True} if settings["sampler"] != FULL["sampler"] else {}
        for first in range(0, len(self.prompts[which]), BATCH):
            batch = self.prompts[which][first : first + BATCH]
            call = timed_generate(
                self.model, self.padded(batch), settings | self.room | traced | {"seed": [0] * len(batch)}
            )
            rows += call.rows
            recurrences += call.recurrences
            if traced:
                core_passes += sum(wave.core_passes for wave in call.output.trace.waves)
        return {"rows": rows, "recurrences": recurrences, "core_passes": core_passes}

    def padded(self, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        width = max(ids.shape[1] for ids in batch)
        ids = torch.full((len(batch), width), self.room["pad_token_id"])
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - prompt.shape[1] :], mask[row, width - prompt.shape[1] :] = prompt[0], 1
        return {"input_ids": ids, "attention_mask": mask}

    def measured(self, settings: dict[str, Any], which: int) -> dict[str, float]:
        found = self.decode(settings, which)
        tokens = sum(len(row) - 1 for row in found["rows"])  # the first of each comes from the prompt's pass
        result = {
            "equal": equal_tokens(found["rows"], self.expected[which]) / sum(map(len, self.expected[which])),
            "recurrences": found["recurrences"] / tokens,
            "core_passes": found["core_passes"] / tokens,
        }
        if self.answers:
            texts = self.tokenizer.batch_decode(found["rows"], skip_special_tokens=True)
            result["accuracy"] = accuracy(self.answers[which], texts)
        return result


def problem_domain(count: int) -> Domain:
    path = bundled_checkpoint()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    drawn = list(islice(problems(SEED, held_out=True), 2 * count))
    sets = [drawn[:count], drawn[count:]]
    prompts = [[tokenizer(each.prompt, return_tensors="pt").input_ids for each in some] for some in sets]
    return Domain(model, tokenizer, prompts, 160, sets)


def source_domain(count: int) -> Domain:
    path = ROOT / "tests/fixtures/python-source"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    drawn = source_prompts(tokenizer, 2 * count, 64, seed=SEED)
    return Domain(model, tokenizer, [drawn[:count], drawn[count:]], 48, [])


def chosen(
    domain: Domain, sampler: dict[str, Any], criterion: str, bar: tqdm, known: dict[str, Any] | None
) -> dict[str, Any]:
    """Every threshold on the first set, and for each level the loosest that keeps it on the second.

    Args:
        known: an earlier record of the same texts, whose measurements are kept.
    """
    known = known or {"curve": {}, "levels": {}}
    curve, levels = {}, {}
    for threshold in THRESHOLDS[criterion]:
        settings = sampler | {"exit_criterion": criterion, "exit_threshold": threshold}
        curve[str(threshold)] = known["curve"].get(str(threshold)) or domain.measured(settings, 0)
        bar.update()
    for level in LEVELS:
        kept = [float(threshold) for threshold, found in curve.items() if found["equal"] >= level]
        earlier = known["levels"].get(str(level))
        if kept and earlier is not None and earlier["threshold"] == max(kept):
            levels[str(level)] = earlier
        elif kept:
            settings = sampler | {"exit_criterion": criterion, "exit_threshold": max(kept)}
            levels[str(level)] = {"threshold": max(kept), **domain.measured(settings, 1)}
    return {"curve": curve, "levels": levels}


def timed(domain: Domain, record: dict[str, Any], level: str, prompts: int, **kwargs) -> None:
    """Add tokens per second over autoregression's to the chosen settings of a level, one prompt at a time."""
    runs = {"": Run("full", FULL | {"seed": 0})}
    for title, sampler in SAMPLERS.items():
        for criterion in ("latent_difference", "settling"):
            found = record[title][criterion]["levels"].get(level)
            if found is not None:
                settings = {"exit_criterion": criterion, "exit_threshold": found["threshold"], "seed": 0}
                runs[title, criterion] = Run(title, sampler | settings)
    compare(domain.model, domain.prompts[1][:prompts], list(runs.values()), **domain.room | kwargs)
    full = runs.pop("")
    for (title, criterion), run in runs.items():
        speedup = run.tokens_per_second / full.tokens_per_second
        record[title][criterion]["levels"][level]["speedup"] = speedup


def write_table(record: dict[str, Any]) -> None:
    lines = []
    for name, domain in record["domains"].items():
        headings = [f"{name}: sampler, criterion"]
        for level in LEVELS:
            headings += [f"{percent(level, 0)}: threshold", "recurrences", "core passes", "equal", "right"]
        headings.append("speed")
        rows = []
        for title, criteria in domain.items():
            for criterion, found in criteria.items():
                cells = [f"{title}, `{criterion}`"]
                for level in LEVELS:
                    cells += level_cells(found["levels"].get(str(level)))
                speed = found["levels"].get(str(LEVELS[-1]), {}).get("speedup")
                rows.append([*cells, "" if speed is None else f"{speed:.2f}x"])
        lines += [*markdown_table(headings, rows), ""]
    origin = f"Measured by `scripts/measure_settling.py` in float32 on {provenance(record)}."
    replace(DOCS / "hooks.md", "settling", [*lines, origin])


def level_cells(found: dict[str, float] | None) -> list[str]:
    if found is None:
        return ["-"] * 5
    right = percent(found["accuracy"]) if "accuracy" in found else ""
    counts = [f"{found['recurrences']:.2f}", f"{found['core_passes']:.2f}"]
    return [f"{found['threshold']:g}", *counts, percent(found["equal"]), right]


def main(
    count: Annotated[int, typer.Option(help="Texts in each of the two sets of a domain.")] = 48,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    only: Annotated[str | None, typer.Option(help="Measure one domain: problems or source.")] = None,
    speed: Annotated[int, typer.Option(help="Only time the recorded settings, on this many prompts.")] = 0,
):
    torch.set_num_threads(threads)
    path = DOCS / "benchmarks" / "settling.json"
    for name, make in {"problems": problem_domain, "source": source_domain}.items():
        if only not in (None, name):
            continue
        domain = make(max(count, speed))
        if speed:
            record = json.loads(path.read_text())
            timed(domain, record["domains"][name], str(LEVELS[-1]), speed)
            record["speed"] = {"prompts": speed, "machine": describe_machine(domain.model)}
        else:
            known = json.loads(path.read_text()) if path.exists() else {"domains": {}}
            own = known["domains"].get(name, {}) if (known.get("count"), known.get("seed")) == (count, SEED) else {}
            with tqdm(desc=name, total=len(SAMPLERS) * sum(map(len, THRESHOLDS.values()))) as bar:
                found = {
                    title: {
                        criterion: chosen(domain, sampler, criterion, bar, own.get(title, {}).get(criterion))
                        for criterion in THRESHOLDS
                    }
                    for title, sampler in SAMPLERS.items()
                }
            record = json.loads(path.read_text()) if path.exists() else {"domains": {}}
            record |= {"count": count, "seed": SEED, "versions": versions(), "date": date.today().isoformat()}
            record["machine"] = describe_machine(domain.model)
            record["domains"][name] = found
        write_file(path, json.dumps(record, indent=1) + "\n")
        write_table(record)


if __name__ == "__main__":
    typer.run(main)

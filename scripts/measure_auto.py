"""Measure whether the preset auto is as fast as the fastest fixed preset.

    python scripts/measure_auto.py
    python scripts/measure_auto.py --part packed

Both trained checkpoints, made 4 times as wide, decode held-out prompts in float32 with plain or packed weights, alone
and in batches of 4. The presets take turns on every prompt of one process, and every ratio compares two calls that
follow each other. Writes docs/benchmarks/auto.json and auto.md; a part replaces only its own rows.
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial

import torch
from measure_lossless import FACTOR
from measured_parts import CHECKPOINTS, measure_parts, signature
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import pack_linear_weights
from hf_diffusion_forcing.evaluation.problems import problem_prompts
from hf_diffusion_forcing.evaluation.python_source import source_prompts
from hf_diffusion_forcing.evaluation.timing import Call, timed_generate
from hf_diffusion_forcing.evaluation.widening import widen

BATCHES = (1, 4)
BASE_TOKENS = 8
WAYS = {
    "autoregressive": {"sampler": "autoregressive", "max_new_tokens": BASE_TOKENS},
    "adaptive": {"sampler": "adaptive", "adaptive_prefill": True},
    "balanced": {"sampler_preset": "balanced"},
    "fast": {"sampler_preset": "fast"},
    "auto": {"sampler_preset": "auto"},
}
FIXED = ("adaptive", "balanced", "fast")


def batches(domain: str, tokenizer, rows: int, count: int) -> list[dict[str, torch.Tensor]]:
    """Batches of different prompts, with left padding."""
    if domain == "problems":
        prompts = problem_prompts(tokenizer, rows * count, seed=2028, kind="worked")
    else:
        prompts = source_prompts(tokenizer, rows * count, 128)
    ids = [prompt[0].tolist() for prompt in prompts]
    return [
        dict(tokenizer.pad({"input_ids": ids[first : first + rows]}, return_tensors="pt"))
        for first in range(0, len(ids), rows)
    ]


def rows_of(packs: bool, count: int, room: int) -> Iterator[dict]:
    """Yield one row per domain, batch size and way to decode."""
    for domain, path in CHECKPOINTS.items():
        model = widen(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), FACTOR)
        model = pack_linear_weights(model) if packs else model
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        for batch in BATCHES:
            asked = batches(domain, tokenizer, batch, count)
            for settings in WAYS.values():  # lazy initialisation, and the cost curve
                model.generate(**asked[0], **settings | {"seed": 0, "max_new_tokens": 4})
            calls = defaultdict(list)
            for inputs in tqdm(asked, desc=f"{domain}, batch {batch}", leave=False):
                for name, settings in WAYS.items():
                    call = {"seed": 0, "max_new_tokens": room} | settings
                    calls[name].append(timed_generate(model, inputs, call, first=True))
            for name in WAYS:
                yield {"domain": domain, "batch": batch, "way": name} | summary(calls, name)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def summary(calls: dict[str, list[Call]], name: str) -> dict:
    """What the calls of one way took, beside those of autoregression and of the preset fast."""
    own = calls[name]
    row = {
        "tokens": sum(call.tokens for call in own),
        "ms_per_token": spread([1000 * call.seconds_per_token for call in own]),
        "speedup": spread(
            [
                base.seconds_per_token / call.seconds_per_token
                for base, call in zip(calls["autoregressive"], own, strict=True)
            ]
        ),
    }
    if name != "autoregressive":
        # Texts of the samplers may end at different lengths.
        row["time_over_fast"] = spread(
            [
                call.seconds * fast.tokens / (fast.seconds * call.tokens)
                for call, fast in zip(own, calls["fast"], strict=True)
            ]
        )
        row["ticks_per_token"] = sum(call.ticks for call in own) / sum(max(map(len, call.rows)) - 1 for call in own)
        row["positions"] = sum(call.recurrences for call in own) / sum(call.core_passes for call in own)
    if name == "auto":
        row["time_over_best"] = spread(
            [
                call.seconds
                / call.tokens
                / min(calls[fixed][index].seconds / calls[fixed][index].tokens for fixed in FIXED)
                for index, call in enumerate(own)
            ]
        )
        decided = [call.output.stats.decisions for call in own]
        row["recurrences"] = statistics.median(each[0].measured["recurrences"] for each in decided)
        row["first"] = Counter(said(each[0]) for each in decided)
        row["last"] = Counter(said(each[-1]) for each in decided)
    return row


def said(decision) -> str:
    """A decision in a cell."""
    if decision.sampler == "adaptive":
        return "adaptive"
    return f"{decision.settings['wavefront']} x {decision.settings['inner_recurrence']}"


def cell(values: dict[str, float], form: str = ".2f") -> str:
    return f"{values['median']:{form}} ({values['least']:{form}} to {values['most']:{form}})"


def page_of(weights: str, part: dict) -> list[str]:
    """One part as Markdown."""
    lines = [
        f"## {weights.capitalize()} weights",
        "",
        f"{signature(part)} float32, checkpoints made {FACTOR} times as wide. Medians over calls, with the least and "
        f"the most. *Decoding* is relative to {BASE_TOKENS} tokens of autoregression at r = 32 on the same prompts. "
        "*Call / fast* and *call / best* divide the seconds per token of a whole call, prompt included, by those of "
        "the preset fast and by those of the fastest of adaptive, balanced and fast on the same prompts. "
        "*Recurrences* is how many a position at the end of the prompt needed. *Chosen* is the first and the last "
        "choice of the calls, as wavefront x inner recurrence.",
        "",
        "| text | batch | preset | ms per token | decoding | call / fast | call / best | ticks per token | positions | "
        "recurrences | chosen |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in part["rows"]:
        cells = [
            row["domain"],
            str(row["batch"]),
            row["way"],
            f"{row['ms_per_token']['median']:.1f}",
            cell(row["speedup"]),
        ]
        cells += [cell(row[name]) if name in row else "" for name in ("time_over_fast", "time_over_best")]
        cells += [f"{row[name]:.2f}" if name in row else "" for name in ("ticks_per_token", "positions")]
        cells.append(f"{row['recurrences']:.1f}" if "recurrences" in row else "")
        chosen = [", ".join(row[name]) for name in ("first", "last") if name in row]
        lines.append(f"| {' | '.join([*cells, ' then '.join(dict.fromkeys(chosen))])} |")
    return lines


PARTS = {part: (partial(rows_of, part == "packed"), partial(page_of, part)) for part in ("plain", "packed")}


if __name__ == "__main__":
    measure_parts(
        "auto", "The preset auto", PARTS, count=3, counted="Batches of each size and kind.", max_new_tokens=96
    )

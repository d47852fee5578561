"""Measure what guesses change in diffusion forcing: core passes a token, and agreement with full depth.

    python scripts/measure_guesses.py
    python scripts/measure_guesses.py --part speed

Both trained checkpoints decode held-out prompts in float32, greedily, one text at a time, with their own
`decoding_heads.safetensors` and without. Writes docs/benchmarks/guesses.json and guesses.md; a part replaces only its
own rows.
"""

from collections import Counter
from collections.abc import Iterator

import torch
from measure_lossless import FACTOR, Oracle, decoding_seconds, prompts
from measured_parts import CHECKPOINTS, guess_counts, measure_parts, signature
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing.evaluation.widening import widen
from hf_diffusion_forcing.generation.trace import Trace

SINGLE = {"name": "prompt_lookup", "min_ngram": 1}
"""Prompt lookup that a single token is enough for."""
WAYS = {
    "none": (1, None, False),
    "prompt lookup": (8, "prompt_lookup", False),
    "prompt lookup, `min_ngram=1`": (8, SINGLE, False),
    "extra-token head": (8, None, True),
    "both": (8, "prompt_lookup", True),
    "both, `min_ngram=1`": (8, SINGLE, True),
    "oracle": (8, "oracle", False),
}
"""`draft_tokens`, `draft_source`, and whether the checkpoint's heads guess too."""
INNER_RECURRENCES = (4, 1)


def changes(trace: Trace) -> Counter:
    """In how many ticks a draft changed, and how many positions were behind the first that did."""
    found: Counter[str] = Counter()
    for wave in trace.waves:
        pairs = zip(wave.tokens[1:], wave.predictions, strict=False)
        changed = next((place for place, (token, predicted) in enumerate(pairs, start=1) if token != predicted), None)
        if changed is not None:
            found.update(changed=1, behind=wave.width - changed - 1)
    return found


def rows(count: int, room: int) -> Iterator[dict]:
    """Yield the counts of every way to guess, in both domains."""
    for domain, path in CHECKPOINTS.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        heads, asked = model.decoding_heads, prompts(domain, count)
        common = {"seed": 0, "max_new_tokens": room, "return_dict_in_generate": True}
        texts = [model.generate(ids, sampler="autoregressive", **common).sequences[0].tolist() for ids in asked]
        for recurrences in INNER_RECURRENCES:
            for way, (tokens, source, has_heads) in WAYS.items():
                model.decoding_heads = heads if has_heads else None
                total, guesses = Counter(), {}
                for ids, text in zip(asked, tqdm(texts, desc=f"{domain}, {way}", leave=False), strict=True):
                    output = model.generate(
                        ids,
                        sampler="diffusion_forcing",
                        inner_recurrence=recurrences,
                        draft_tokens=tokens,
                        draft_source=Oracle(text) if source == "oracle" else source,
                        return_trace=True,
                        **common,
                    )
                    stats, first, new = output.stats, ids.shape[1], output.sequences[0].tolist()
                    names = ("decoded_tokens", "ticks", "core_passes", "positions_refined")
                    total.update({name: getattr(stats, name) for name in names})
                    total.update(changes(output.trace))
                    total.update(
                        same=sum(a == b for a, b in zip(new[first:], text[first:], strict=False)),
                        expected=max(len(new), len(text)) - first,
                        equal=new == text,
                    )
                    for name, counted in stats.guesses.items():
                        guesses[name] = [sum(each) for each in zip(guesses.get(name, (0, 0)), counted, strict=True)]
                yield {
                    "domain": domain,
                    "inner_recurrence": recurrences,
                    "way": way,
                    "texts": len(texts),
                    "equal": total["equal"],
                    "agreement": total["same"] / total["expected"],
                    "core_passes_per_token": total["core_passes"] / total["decoded_tokens"],
                    "recurrences_per_token": total["positions_refined"] / total["decoded_tokens"],
                    "ticks_with_change": total["changed"] / total["ticks"],
                    "behind_change": total["behind"] / total["changed"] if total["changed"] else 0.0,
                    "guesses": guesses,
                }


def speed_rows(count: int, room: int) -> Iterator[dict]:
    """Yield seconds per token of decoding for every way but the oracle, with plain weights made wider."""
    for domain, path in CHECKPOINTS.items():
        model = widen(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), FACTOR).eval()
        heads, asked = model.decoding_heads, prompts(domain, count)
        for recurrences in INNER_RECURRENCES:
            alone = None
            for way, (tokens, source, has_heads) in WAYS.items():
                if source == "oracle":
                    continue
                model.decoding_heads = heads if has_heads else None
                settings = {"sampler": "diffusion_forcing", "inner_recurrence": recurrences, "draft_tokens": tokens}
                settings |= {"draft_source": source, "seed": 0, "max_new_tokens": room}
                seconds = decoding_seconds(model, asked, settings)
                alone = alone or seconds
                row = {"domain": domain, "inner_recurrence": recurrences, "way": way}
                yield row | {"seconds_per_token": seconds, "speedup": alone / seconds}


def page(part: dict) -> list[str]:
    """The counts as Markdown."""
    lines = [
        "## Core passes and agreement",
        "",
        f"{signature(part)} Float32, greedy, batch 1, `wavefront=32`, `exit_threshold=0.03`; with guesses "
        "`draft_tokens=8`. The oracle knows the text of full depth.",
        "",
        "- *Refined* is positions refined per token.",
        "- *Agreement* is the share of tokens that full depth has at the same place; *equal* counts texts.",
        "- *Changed* is the share of ticks in which a draft changed, and *behind* how many positions were behind it.",
        "- *Right* counts the guesses whose earlier tokens were all right.",
        "",
        "| text | r' | guesses | core passes per token | refined | agreement | equal | changed | behind | right |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in part["rows"]:
        lines.append(
            f"| {row['domain']} | {row['inner_recurrence']} | {row['way']} | {row['core_passes_per_token']:.2f} | "
            f"{row['recurrences_per_token']:.1f} | {row['agreement']:.1%} | {row['equal']} of {row['texts']} | "
            f"{row['ticks_with_change']:.0%} | {row['behind_change']:.1f} | {guess_counts(row)} |"
        )
    return lines


def speed_page(part: dict) -> list[str]:
    """The timings as Markdown."""
    lines = [
        "## Speed with guesses",
        "",
        f"{signature(part)} The models are {FACTOR} times as wide, float32, plain weights, batch 1; decoding alone, "
        "without the prompt. Speedups are relative to no guesses.",
        "",
        "| text | r' | guesses | ms per token | speedup |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for row in part["rows"]:
        lines.append(
            f"| {row['domain']} | {row['inner_recurrence']} | {row['way']} | {1e3 * row['seconds_per_token']:.1f} | "
            f"{row['speedup']:.2f}x |"
        )
    return lines


PARTS = {"passes": (rows, page), "speed": (speed_rows, speed_page)}


if __name__ == "__main__":
    measure_parts(
        "guesses",
        "Guesses in diffusion forcing",
        PARTS,
        count=12,
        counted="Texts per row.",
        max_new_tokens=128,
    )

"""Measure how often lossless text equals autoregression's, the passes and memory it takes, and what guesses change.

    python scripts/measure_lossless.py
    python scripts/measure_lossless.py --part guesses
    python scripts/measure_lossless.py --part speed
    python scripts/measure_lossless.py --part auto --count 2

Both trained checkpoints run at full depth: without guesses in float32 and bfloat16, with guesses (`draft_tokens`) in
float32, and made 4 times as wide for the speed. Writes docs/benchmarks/lossless.json and lossless.md; a part replaces
only its own rows.
"""

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from measured_parts import CHECKPOINTS, ROOT, guess_counts, measure_parts, signature
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import DraftSource
from hf_diffusion_forcing.evaluation.problems import problem_prompts
from hf_diffusion_forcing.evaluation.python_source import source_prompts
from hf_diffusion_forcing.evaluation.timing import timed_generate
from hf_diffusion_forcing.evaluation.widening import widen

CHOICES = {"greedy": {}, "sampled": {"do_sample": True, "top_k": 0}}


WAYS = [
    {"draft_depth": depth, "draft_tokens": tokens, "draft_source": source}
    for depth in (2, 1)
    for tokens, source in ((1, None), (2, "prompt_lookup"), (4, "prompt_lookup"), (8, "prompt_lookup"), (8, None))
] + [{"draft_depth": 2, "draft_tokens": "auto", "draft_source": "prompt_lookup"}]
"""Settings with and without guesses. Without a source only dropped drafts are guessed."""
FIXED = {
    f"draft_depth={depth}, draft_tokens={tokens}": {"draft_depth": depth, "draft_tokens": tokens}
    for depth in (1, 2, 4)
    for tokens in (1, 4)
}
"""Fixed settings that the preset auto is compared with, besides the preset lossless."""
FACTOR = 4
"""How many times as wide the models are that are timed: about 30 million weights in a core pass and the ends."""


@dataclass
class Oracle(DraftSource):
    """Knows the text: the most that any source can do."""

    text: list[int]

    def propose(self, ids: list[int], count: int) -> list[int]:
        return self.text[len(ids) : len(ids) + count] if self.text[: len(ids)] == ids else []


def prompts(domain: str, count: int) -> list[torch.Tensor]:
    """The prompts of a domain, int64 [1, length] each."""
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS[domain])
    if domain == "problems":
        return problem_prompts(tokenizer, count, seed=2027, kind="worked")
    return source_prompts(tokenizer, count, 96)


def rows(count: int, room: int) -> Iterator[dict]:
    """Yield one row per domain, dtype and way of choosing tokens."""
    for domain, path in CHECKPOINTS.items():
        asked = prompts(domain, count)
        for dtype in (torch.float32, torch.bfloat16):
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, decoding_heads=False).eval()
            for choice, settings in CHOICES.items():
                common = {"seed": 0, "max_new_tokens": room, "return_dict_in_generate": True} | settings
                texts = tokens = waves = passes = changed = 0
                kv_bytes = [0, 0]
                for ids in tqdm(asked, desc=f"{domain}, {str(dtype)[6:]}, {choice}", leave=False):
                    expected = model.generate(ids, sampler="autoregressive", **common)
                    output = model.generate(ids, sampler="speculative_wavefront", **common)
                    texts += 1
                    changed += output.sequences.tolist() != expected.sequences.tolist()
                    tokens += output.stats.decoded_tokens
                    waves += output.stats.waves
                    passes += output.stats.core_passes
                    kv_bytes[0] += output.cache.nbytes
                    kv_bytes[1] += expected.cache.nbytes
                depth, steps = output.stats.draft_depth, model.config.mean_recurrence
                yield {
                    "domain": domain,
                    "dtype": str(dtype)[6:],
                    "choice": choice,
                    "draft_depth": depth,
                    "texts": texts,
                    "changed": changed,
                    "tokens": tokens,
                    "mean_accepted_length": tokens / waves,
                    "fewer_core_passes": steps * tokens / passes,
                    "of_bound": depth * tokens / passes,
                    "kv_ratio": kv_bytes[0] / kv_bytes[1],
                }


def counted(domain: str, model, asked: list[torch.Tensor], room: int, ways: list[dict], **common) -> Iterator[dict]:
    """Yield the counts of each way to guess, over all texts."""
    common = {"seed": 0, "max_new_tokens": room, "return_dict_in_generate": True} | common
    texts = [model.generate(ids, sampler="autoregressive", **common).sequences.tolist() for ids in asked]
    for way in ways:
        total, made, right, changed, drafts = Counter(), Counter(), Counter(), 0, [0, 0]
        for ids, text in zip(asked, tqdm(texts, desc=f"{domain}, {way}", leave=False), strict=True):
            source = Oracle(text[0]) if way["draft_source"] == "oracle" else way["draft_source"]
            output = model.generate(ids, sampler="speculative_wavefront", **way | {"draft_source": source}, **common)
            stats = output.stats
            changed += output.sequences.tolist() != text
            names = ("decoded_tokens", "core_passes", "positions_refined", "waves")
            total.update({name: getattr(stats, name) for name in names})
            for index, number in enumerate(stats.proposals.get(stats.draft_depth, (0, 0))):
                drafts[index] += number
            for name, (guessed, correct) in stats.guesses.items():
                made[name] += guessed
                right[name] += correct
        yield {
            "domain": domain,
            **way,
            "num_steps": common.get("num_steps", model.config.mean_recurrence),
            "texts": len(texts),
            "changed": changed,
            "tokens": total["decoded_tokens"],
            "waves": total["waves"],
            "core_passes_per_token": total["core_passes"] / total["decoded_tokens"],
            "recurrences_per_token": total["positions_refined"] / total["decoded_tokens"],
            "drafts": drafts,
            "guesses": {name: [made[name], right[name]] for name in sorted(made)},
        }


def guess_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the counts of every way in both domains, and what an oracle would reach."""
    oracle = [{"draft_depth": 2, "draft_tokens": 8, "draft_source": "oracle"}]
    for domain, path in CHECKPOINTS.items():
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, decoding_heads=False).eval()
        yield from counted(domain, model, prompts(domain, count), room, WAYS + oracle)
    tiny = AutoModelForCausalLM.from_pretrained(ROOT / "tests" / "fixtures" / "nanbeige-tiny").eval()
    asked = list(torch.arange(8 * count).remainder(61).view(count, 1, 8))
    ways = [{"draft_depth": 1, "draft_tokens": m, "draft_source": "oracle"} for m in (1, 2, 4, 8)]
    yield from counted("random weights", tiny, asked, room, ways, num_steps=2, eos_token_id=None)


def decoding_seconds(model, asked: list[torch.Tensor], settings: dict) -> float:
    """Seconds per token of decoding the prompts one by one, after a short call that warms up."""
    timed_generate(model, {"input_ids": asked[0]}, settings | {"max_new_tokens": 8})
    calls = [timed_generate(model, {"input_ids": ids}, settings, first=True) for ids in tqdm(asked, leave=False)]
    return sum(call.decoding for call in calls) / sum(call.tokens for call in calls)


def speed_rows(count: int, room: int) -> Iterator[dict]:
    """Yield seconds per token of decoding, of autoregression and of every way, with plain weights made wider."""
    for domain, path in CHECKPOINTS.items():
        model = widen(
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, decoding_heads=False).eval(), FACTOR
        ).eval()
        asked = prompts(domain, count)
        baseline = None
        for way in [{}, *(way for way in WAYS if way["draft_tokens"] == 1 or way["draft_source"])]:
            settings = {"sampler": "speculative_wavefront", "seed": 0, "max_new_tokens": room} | way
            if not way:
                settings |= {"sampler": "autoregressive", "max_new_tokens": room // 4}
            seconds = decoding_seconds(model, asked, settings)
            baseline = baseline or seconds
            yield {"domain": domain, **way, "seconds_per_token": seconds, "speedup": baseline / seconds}


def auto_rows(count: int, room: int) -> Iterator[dict]:
    """Yield what each way takes relative to the preset lossless, in turns on every prompt, with wider models."""
    ways = {"lossless": {"sampler_preset": "lossless"}, "auto": {"sampler_preset": "auto", "lossless": True}}
    ways |= {name: {"sampler": "speculative_wavefront"} | way for name, way in FIXED.items()}
    for domain, path in CHECKPOINTS.items():
        model = widen(
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, decoding_heads=False).eval(), FACTOR
        ).eval()
        asked = prompts(domain, count)
        for way in ways.values():  # lazy initialisation, and the cost curve
            model.generate(asked[0], **way, seed=0, max_new_tokens=4)
        calls = {name: [] for name in ways}
        for ids in tqdm(asked, desc=domain, leave=False):
            for name, way in ways.items():
                calls[name].append(timed_generate(model, {"input_ids": ids}, way | {"seed": 0, "max_new_tokens": room}))
        for name, own in calls.items():
            ratios = [call.seconds / base.seconds for call, base in zip(own, calls["lossless"], strict=True)]
            decided = [call.output.stats.decisions for call in own] if name == "auto" else []
            yield {
                "domain": domain,
                "way": name,
                "changed": sum(
                    call.output.sequences.tolist() != base.output.sequences.tolist()
                    for call, base in zip(own, calls["lossless"], strict=True)
                ),
                "ms_per_token": 1e3 * sum(call.seconds for call in own) / sum(call.tokens for call in own),
                "time_over_lossless": [statistics.median(ratios), min(ratios), max(ratios)],
                "chosen": [[list(each.settings.values()) for each in decisions] for decisions in decided],
            }


def auto_page(part: dict) -> list[str]:
    """The comparison with the preset auto as Markdown."""
    lines = [
        "## Automatic settings",
        "",
        f"{signature(part)} The models are {FACTOR} times as wide, float32, plain weights, r = 32, batch 1; whole "
        "calls, prompt included. *Call / lossless* divides the seconds of a call by those of the preset lossless on "
        "the same prompt: the median, the least and the most. *Chosen* is draft depth x draft tokens of the calls, in "
        "order.",
        "",
        "| text | settings | changed | ms per token | call / lossless | chosen |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in part["rows"]:
        median, least, most = row["time_over_lossless"]
        chosen = "; ".join(" then ".join(f"{k} x {m}" for k, m in decisions) for decisions in row["chosen"])
        lines.append(
            f"| {row['domain']} | {row['way']} | {row['changed']} | {row['ms_per_token']:.1f} | "
            f"{median:.2f} ({least:.2f} to {most:.2f}) | {chosen} |"
        )
    return lines


def way_cells(row: dict) -> str:
    """The settings of a row as cells of a table."""
    if "draft_tokens" not in row:
        return f"| {row['domain']} | autoregression | | |"
    source = "" if row["draft_tokens"] == 1 else row["draft_source"] or "dropped drafts alone"
    return f"| {row['domain']} | {row['draft_depth']} | {row['draft_tokens']} | {source} |"


def equality_page(part: dict) -> list[str]:
    """The rows without guesses as Markdown."""
    lines = [
        f"{signature(part)} Both trained checkpoints decode at r = 32, batch 1.",
        "",
        "- *Changed* counts the texts in which any token differs from autoregression.",
        "- *Fewer core passes* is the recurrences that autoregression runs in sequence, divided by the core passes of "
        "the lossless wavefront. Its upper bound is r / k; *of the bound* is the share reached.",
        "- *KV* is the size of the cache relative to that of autoregression.",
        "",
        "| text | weights | choice | texts | changed | mean accepted length | fewer core passes | of the bound | KV |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in part["rows"]:
        lines.append(
            f"| {row['domain']} | {row['dtype']} | {row['choice']} | {row['texts']} | {row['changed']} | "
            f"{row['mean_accepted_length']:.1f} | {row['fewer_core_passes']:.1f}x | {100 * row['of_bound']:.0f} % | "
            f"{row['kv_ratio']:.2f}x |"
        )
    return lines


def guesses_page(part: dict) -> list[str]:
    """The counts with guesses as Markdown."""
    lines = [
        "## Guesses",
        "",
        f"{signature(part)} Float32, greedy, batch 1; r = 32, and r = 2 for the model with random weights, where only "
        "an oracle that knows the text can guess. *Refined* is positions refined per token. *Right* counts the guesses "
        "whose earlier tokens were all right.",
        "",
        "| text | k | m | source | texts | changed | core passes per token | refined | right |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in part["rows"]:
        lines.append(
            f"{way_cells(row)} {row['texts']} | {row['changed']} | {row['core_passes_per_token']:.2f} | "
            f"{row['recurrences_per_token']:.1f} | {guess_counts(row)} |"
        )
    return lines


def speed_page(part: dict) -> list[str]:
    """The timings as Markdown."""
    lines = [
        "## Speed with guesses",
        "",
        f"{signature(part)} The models are {FACTOR} times as wide, float32, plain weights, r = 32, batch 1; decoding "
        "alone, without the prompt.",
        "",
        "| text | k | m | source | ms per token | against autoregression |",
        "| --- | ---: | ---: | --- | ---: | ---: |",
    ]
    for row in part["rows"]:
        lines.append(f"{way_cells(row)} {1e3 * row['seconds_per_token']:.1f} | {row['speedup']:.2f}x |")
    return lines


PARTS = {
    "equality": (rows, equality_page),
    "guesses": (guess_rows, guesses_page),
    "speed": (speed_rows, speed_page),
    "auto": (auto_rows, auto_page),
}


if __name__ == "__main__":
    measure_parts(
        "lossless",
        "The lossless wavefront against autoregression",
        PARTS,
        count=48,
        counted="Texts per row.",
        max_new_tokens=128,
    )

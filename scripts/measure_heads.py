"""Measure what fitted decoding heads change: right drafts, core passes a token, and recurrences before an exit.

    python scripts/measure_heads.py
    python scripts/measure_heads.py --part exits

Both trained checkpoints decode held-out prompts at full depth in float32, greedily, one text at a time, with their own
`decoding_heads.safetensors` and without. Writes docs/benchmarks/heads.json and heads.md; a part replaces only its own
rows.
"""

from collections import Counter
from collections.abc import Iterator

import torch
from measure_lossless import counted, prompts
from measured_parts import CHECKPOINTS, guess_counts, measure_parts, signature
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing.evaluation.inspection import inspect_recurrences
from hf_diffusion_forcing.evaluation.problems import problem_prompts
from hf_diffusion_forcing.evaluation.recurrence_insight import RecurrenceInsight

CLOSE = 0.5
"""A margin of the likeliest token, in nats, below which a draft is a near tie."""

KINDS = {"none": (), "readout": ("readout",), "extra tokens": ("extra",), "both": ("readout", "extra")}
ONE, LOOKUP, ALONE = (1, None), (8, "prompt_lookup"), (8, None)
"""`draft_tokens` and `draft_source`."""
WAYS = {"none": (ONE, LOOKUP), "readout": (ONE, LOOKUP), "extra tokens": (LOOKUP,), "both": (ALONE, LOOKUP)}
"""The ways to guess that each kind of heads is measured with."""
CRITERIA = ("latent_difference", "learned")
AGREEMENTS = (0.999, 0.995, 0.99, 0.98, 0.95)


def model_of(domain: str):
    """A checkpoint in float32."""
    return AutoModelForCausalLM.from_pretrained(CHECKPOINTS[domain], dtype=torch.float32).eval()


def draft_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the counts of every way to draft, with every kind of heads."""
    for domain in CHECKPOINTS:
        model = model_of(domain)
        fitted, asked = model.decoding_heads, prompts(domain, count)
        for kind, parts in KINDS.items():
            model.decoding_heads = fitted.only(*parts) if parts else None
            ways = [
                {"draft_depth": depth, "draft_tokens": tokens, "draft_source": source}
                for depth in (2, 1)
                for tokens, source in WAYS[kind]
            ]
            for row in counted(domain, model, asked, room, ways):
                yield row | {"heads": kind}


def texts_of(model, asked: list[torch.Tensor], room: int) -> list[torch.Tensor]:
    """What full depth writes after each prompt, int64 [1, length]."""
    return [model.generate(ids, sampler="autoregressive", seed=0, max_new_tokens=room) for ids in asked]


def insight_of(model, asked: list[torch.Tensor], texts: list[torch.Tensor], criterion: str) -> RecurrenceInsight:
    """What every recurrence does to texts, with a criterion's values; a threshold is chosen later."""
    parts = []
    for prompt, ids in zip(asked, tqdm(texts, desc=criterion, leave=False), strict=True):
        lengths = [prompt.shape[1] - 1]  # the prompt's last position predicts a new token, too
        parts.append(inspect_recurrences(model, ids, exit_criterion=criterion, prompt_lengths=lengths, seed=0))
    return RecurrenceInsight.joined(parts)


def exits_at(insight: RecurrenceInsight, threshold: float) -> tuple[float, float]:
    """The share of new tokens that equal full depth's at their exit, and the mean recurrences before it."""
    values = insight.exit_values[:, insight.is_new]
    last = torch.arange(len(values))[:, None] == len(values) - 1
    exits = ((values < threshold) | last).int().argmax(0)
    same = (insight.readouts == insight.readouts[-1])[:, insight.is_new].gather(0, exits[None])
    return same.float().mean().item(), exits.float().mean().item() + 1


def cheapest(insight: RecurrenceInsight, agreement: float) -> dict:
    """The threshold with the fewest recurrences and at least this agreement, with its agreement and recurrences."""
    found = [(*exits_at(insight, threshold), threshold) for threshold in torch.logspace(-6, 1, 281).tolist()]
    best = min((each for each in found if each[0] >= agreement), key=lambda each: each[1])
    return dict(zip(("agreement", "recurrences", "threshold"), best, strict=True))


def decoded(model, asked: list[torch.Tensor], texts: list[torch.Tensor], criterion: str, threshold: float) -> dict:
    """Recurrences a token, and the share of tokens equal to full depth's text, in `adaptive`."""
    total: Counter[str] = Counter()
    settings = {"sampler": "adaptive", "exit_criterion": criterion, "exit_threshold": threshold, "seed": 0}
    for prompt, expected in zip(asked, texts, strict=True):
        room, first = expected.shape[1] - prompt.shape[1], prompt.shape[1]
        output = model.generate(prompt, **settings, max_new_tokens=room, return_dict_in_generate=True)
        new, wanted = output.sequences[0, first:].tolist(), expected[0, first:].tolist()
        total["tokens"] += output.stats.decoded_tokens
        total["recurrences"] += output.stats.positions_refined
        total["equal"] += sum(a == b for a, b in zip(new, wanted, strict=False))
        total["expected"] += room
    return {
        "decoded_recurrences": total["recurrences"] / total["tokens"],
        "equal_tokens": total["equal"] / total["expected"],
    }


def exit_rows(count: int, room: int) -> Iterator[dict]:
    """Yield recurrences a token of latent distance and of the exit probe, at equal agreement with full depth."""
    for domain in CHECKPOINTS:
        model, asked = model_of(domain), prompts(domain, count)
        if domain == "problems":
            tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS[domain])
            asked += problem_prompts(tokenizer, 2 * count, seed=2027, kind="mental")
        texts = texts_of(model, asked, room)
        insights = {name: insight_of(model, asked, texts, name) for name in CRITERIA}
        common = {"domain": domain, "tokens": int(insights["learned"].is_new.sum())}
        for agreement in AGREEMENTS:
            row = common | {"at_least": agreement}
            for name, insight in insights.items():
                best = cheapest(insight, agreement)
                row[name] = best | decoded(model, asked, texts, name, best["threshold"])
            yield row
        risk = model.decoding_heads.risk
        if risk is not None:
            found = dict(zip(("agreement", "recurrences"), exits_at(insights["learned"], risk.threshold), strict=True))
            found |= {"threshold": risk.threshold} | decoded(model, asked, texts, "learned", risk.threshold)
            yield common | {"epsilon": risk.epsilon, "learned": found}


def wrong_rows(count: int, room: int) -> Iterator[dict]:
    """Yield what is known of the plain readouts that differ from full depth's, by depth."""
    for domain in CHECKPOINTS:
        model, asked = model_of(domain), prompts(domain, count)
        insight = insight_of(model, asked, texts_of(model, asked, room), "latent_difference")
        differs, margins = insight.readouts != insight.readouts[-1], insight.margins[-1]
        for depth in (1, 2):
            wrong = differs[depth - 1] & insight.is_new
            yield {
                "domain": domain,
                "depth": depth,
                "tokens": int(insight.is_new.sum()),
                "wrong": int(wrong.sum()),
                "near_ties": int((wrong & (margins < CLOSE)).sum()),
                "wrong_twice": int((wrong & differs[2 * depth - 1]).sum()),
                "wrong_at_four": int((wrong & differs[4 * depth - 1]).sum()),
            }


def wrong_page(part: dict) -> list[str]:
    """The wrong readouts as Markdown."""
    lines = [
        "## Wrong readouts",
        "",
        f"{signature(part)} Readouts without heads, given the text of full depth. *Near ties*: full depth prefers its "
        f"token by less than {CLOSE} nats. *Still wrong*: wrong after 2 k and 4 k recurrences, too.",
        "",
        "| text | k | tokens | wrong | near ties | still wrong after 2 k | after 4 k |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in part["rows"]:
        counts = (row[name] for name in ("tokens", "wrong", "near_ties", "wrong_twice", "wrong_at_four"))
        lines.append(f"| {row['domain']} | {row['depth']} | {' | '.join(map(str, counts))} |")
    return lines


def right_share(row: dict) -> float:
    """The share of right drafts after the first draft depth."""
    made, right = row["drafts"]
    return right / made


def drafts_page(part: dict) -> list[str]:
    """The counts of drafts as Markdown."""
    lines = [
        "## Drafts",
        "",
        f"{signature(part)} r = 32. k is the draft depth, m the most positions that enter in a tick. *Right drafts* "
        "are those after k recurrences. *Guesses* counts those whose earlier tokens were all right.",
        "",
        "| text | k | m | source | heads | changed | right drafts | core passes per token | guesses |",
        "| --- | ---: | ---: | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in part["rows"]:
        lines.append(
            f"| {row['domain']} | {row['draft_depth']} | {row['draft_tokens']} | {row['draft_source'] or ''} | "
            f"{row['heads']} | {row['changed']} of {row['texts']} | {right_share(row):.2%} | "
            f"{row['core_passes_per_token']:.2f} | {guess_counts(row)} |"
        )
    return lines


def exits_page(part: dict) -> list[str]:
    """The exits as Markdown."""
    lines = [
        "## Exits",
        "",
        f"{signature(part)} Each criterion has the threshold with the fewest recurrences at which at least the given "
        "share of tokens equals full depth's, given the text of full depth (as in calibration). The last row of a text "
        "has the threshold that `fit` calibrated on other text. *Decoded* is the same threshold in "
        '`sampler="adaptive"`: recurrences a token, and the share of tokens that stand where full depth has them.',
        "",
        "| text | agreement | recurrences: latent distance | probe | fewer | decoded: latent distance | probe |",
        "| --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    for row in part["rows"]:
        told = [
            f"{each['decoded_recurrences']:.2f}, {each['equal_tokens']:.1%}" for each in map(row.get, CRITERIA) if each
        ]
        probe = row["learned"]
        if "epsilon" in row:
            lines.append(
                f"| {row['domain']} | {probe['agreement']:.2%}, calibrated to {1 - row['epsilon']:.0%} | | "
                f"{probe['recurrences']:.2f} | | | {told[0]} |"
            )
            continue
        latent = row["latent_difference"]["recurrences"]
        lines.append(
            f"| {row['domain']} | {row['at_least']:.1%} | {latent:.2f} | {probe['recurrences']:.2f} | "
            f"{1 - probe['recurrences'] / latent:.0%} | {told[0]} | {told[1]} |"
        )
    return lines


PARTS = {
    "drafts": (draft_rows, drafts_page),
    "wrong": (wrong_rows, wrong_page),
    "exits": (exit_rows, exits_page),
}


if __name__ == "__main__":
    measure_parts("heads", "Fitted decoding heads", PARTS, count=12, counted="Texts of each kind.", max_new_tokens=128)

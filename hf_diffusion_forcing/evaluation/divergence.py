"""Where two samplers' texts part: at which tokens, how sure the model was there, and whether the answer survives."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
from tqdm import tqdm

from ..files import whole_file, write_file
from ..generation.samplers import SAMPLERS
from ..settings.spelling import parse_sampler
from ..settings.validation import check_integer
from .evaluator import check_prompts, describe_machine, describe_model, run_batch, versions
from .report import markdown_table, provenance
from .task import Task, batched

KINDS = ("digit", "word", "punctuation", "whitespace", "end of text")
CONTEXT, AFTER = 60, 14
"""Characters of the text before a divergence, and tokens after it, that are kept."""
MARGINS = (0.01, 0.03, 0.1, 0.3, 1.0, math.inf)
"""Upper ends of the classes that tokens are sorted into by their margin, in nats."""


@dataclass(frozen=True)
class Divergence:
    """The first token of a sample's output that is not the baseline's.

    Attributes:
        index: of the sample.
        position: of the token in the output, from 0.
        kind: of the baseline's token, one of `KINDS`.
        before: the end of the text that both share.
        expected, found: the token's text, of the baseline and of the other; "" where the text ended.
        expected_text, found_text: how each goes on from there.
        entropy: of the model's distribution over the token at full depth, in nats.
        margin: log-probability of the likeliest token there less that of the second, in nats.
        rank: place of the found token in that distribution, from 1; None where the text ended.
        recurrences: that the other sampler spent on the token; None where it has no trace, or the prompt predicted it.
        exit_value: the exit criterion's value when it was committed; None where there is none.
        expected_right, found_right: whether each output's answer is right; None without a reference.
    """

    index: int
    position: int
    kind: str
    before: str
    expected: str
    found: str
    expected_text: str
    found_text: str
    entropy: float
    margin: float
    rank: int | None
    recurrences: int | None
    exit_value: float | None
    expected_right: bool | None
    found_right: bool | None


@dataclass(frozen=True)
class TokenRecord:
    """One token of the baseline's outputs, up to and with the first that differs.

    Attributes:
        kind: one of `KINDS`.
        entropy, margin, recurrences, exit_value: as of `Divergence`.
        differs: whether it is the first that differs.
    """

    kind: str
    entropy: float
    margin: float
    recurrences: int | None
    exit_value: float | None
    differs: bool


@dataclass
class Comparison:
    """Where a sampler leaves the baseline, over a task.

    Attributes:
        task: what was asked.
        settings: all arguments, versions and the machine, as JSON values.
        divergences: at most one a sample.
        tokens: of all samples, until the texts part.
        right: per sample, whether the baseline and the other are right; empty where nothing is judged.
    """

    task: Task
    settings: dict[str, Any]
    divergences: list[Divergence]
    tokens: list[TokenRecord]
    right: list[tuple[bool, bool]]

    @cached_property
    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Per kind of token: how many there are until the texts part, and how many of them differ."""
        seen = Counter(token.kind for token in self.tokens)
        differ = Counter(token.kind for token in self.tokens if token.differs)
        return {kind: (seen[kind], differ[kind]) for kind in KINDS if seen[kind]}

    @cached_property
    def by_margin(self) -> dict[float, tuple[int, int]]:
        """The same per class of margins, by its upper end: how often so close a choice came out otherwise."""
        classes = [(next(end for end in MARGINS if token.margin < end), token.differs) for token in self.tokens]
        seen, differ = Counter(end for end, _ in classes), Counter(end for end, differs in classes if differs)
        return {end: (seen[end], differ[end]) for end in MARGINS if seen[end]}

    def values(self, name: str, differs: bool) -> list[float]:
        """All known values of a field of `TokenRecord`, sorted, of the tokens that differ or of the others."""
        chosen = (getattr(token, name) for token in self.tokens if token.differs == differs)
        return sorted(value for value in chosen if value is not None)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single tokens, as plain JSON values."""
        measures = ("entropy", "margin", "recurrences", "exit_value")
        return {
            "settings": self.settings,
            "samples": len(self.task.samples),
            "diverged": len(self.divergences),
            "tokens": len(self.tokens),
            "by_kind": {kind: {"tokens": seen, "differ": differ} for kind, (seen, differ) in self.by_kind.items()},
            "by_margin": [
                {"below": end if math.isfinite(end) else None, "tokens": seen, "differ": differ}
                for end, (seen, differ) in self.by_margin.items()
            ],
            "right": [list(pair) for pair in self.right],
            "cuts": {
                name: {
                    place: cuts(self.values(name, differs)) for place, differs in (("differ", True), ("equal", False))
                }
                for name in measures
            },
            "divergences": [asdict(divergence) for divergence in self.divergences],
        }

    def to_markdown(self, examples: int = 5) -> str:
        """The report.

        Args:
            examples: how many of the divergences to show, those the model was surest about first.
        """
        settings, count, parted = self.settings, len(self.task.samples), len(self.divergences)
        lines = [
            f"`{settings['sampler']}` against `{settings['baseline']}`, {Path(settings['model']['name']).name} on "
            f"{self.task.name}, {count} samples of at most {settings['max_new_tokens']} tokens: {count - parted} texts "
            f"are the same, {parted} part somewhere, one token in {rate(len(self.tokens), parted)}.",
            "",
        ]
        if self.right:
            both = Counter(self.right)
            lost, gained = both[True, False], both[False, True]
            lines += [
                f"Answers: {both[True, True]} right with both, {lost} with the baseline alone, {gained} with the other "
                f"alone, {both[False, False]} with neither.",
                "",
            ]
        rows = [
            [kind, str(seen), str(differ), f"one in {rate(seen, differ)}"]
            for kind, (seen, differ) in self.by_kind.items()
        ]
        lines += markdown_table(
            ["the baseline's token", "tokens until the texts part", "first to differ", "rate"], rows
        )
        if self.divergences:
            rows = [
                [margin_class(end), str(seen), str(differ), share(differ, seen)]
                for end, (seen, differ) in self.by_margin.items()
            ]
            lines += ["", *markdown_table(["margin at full depth (nats)", "tokens", "first to differ", "share"], rows)]
            lines += ["", *self.measures()]
            ranks = Counter(divergence.rank for divergence in self.divergences)
            lines += [
                "",
                f"The token written instead is the model's second choice at full depth in {ranks[2]} of {parted} "
                f"cases, its first in {ranks[1]}.",
                "",
                "Those the model was surest about:",
                "",
            ]
            surest = sorted(self.divergences, key=lambda divergence: -divergence.margin)[:examples]
            rows = [
                [
                    str(each.index),
                    str(each.position),
                    code(each.before),
                    code(each.expected_text),
                    code(each.found_text),
                    f"{each.margin:.2f}",
                    "-" if each.exit_value is None else f"{each.exit_value:.4f}",
                ]
                for each in surest
            ]
            lines += markdown_table(["sample", "token", "after", "baseline", "other", "margin", "exit value"], rows)
        lines += [
            "",
            f"Made by `hf-diffusion-forcing diff` in {settings['model']['dtype']}, seed {settings['seed']}, on "
            f"{provenance(settings)}.",
        ]
        return "\n".join(lines) + "\n"

    def measures(self) -> list[str]:
        """The table of how sure the model was and what the other sampler spent, at tokens that differ and others."""
        names = {
            "entropy": "entropy at full depth (nats)",
            "margin": "margin of the likeliest token (nats)",
            "recurrences": "recurrences the other spent",
            "exit_value": "exit value when committed",
        }
        rows = []
        for name, title in names.items():
            pairs = [cuts(self.values(name, differs)) for differs in (True, False)]
            if None not in pairs:
                rows.append([title, *("{:.3g} ({:.3g} to {:.3g})".format(*pair) for pair in pairs)])
        return markdown_table(["median (10 % to 90 %)", "at the token that differs", "at tokens that are equal"], rows)

    def draw(self, path: str | os.PathLike) -> None:
        """A figure: margins of both sorts of tokens, and how many texts are still the same at each token."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.4))
        left, right = figure.subplots(1, 2)
        for differs, label in ((False, "equal"), (True, "the first that differs")):
            if values := self.values("margin", differs):
                shares = [(place + 1) / len(values) for place in range(len(values))]
                left.step(values, shares, where="post", label=f"{label} ({len(values)})")
        left.set(xlabel="margin of the likeliest token, nats", ylabel="share of tokens", ylim=(0, 1.02))
        left.legend(fontsize=8)
        count = len(self.task.samples)
        ends = sorted(divergence.position for divergence in self.divergences)
        places, left_over = [0, *ends], [count - number for number in range(len(ends) + 1)]
        right.step([*places, self.settings["max_new_tokens"]], [*left_over, left_over[-1]], where="post")
        right.set(xlabel="token of the output", ylabel="texts still the same", ylim=(0, count * 1.02))
        figure.tight_layout()
        figure.savefig(path, dpi=90, format="png")

    def save(self, folder: str | os.PathLike, examples: int = 5) -> None:
        """Write `difference.md`, `difference.json` and `difference.png`, each as a whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "difference.png") as partial:
            self.draw(partial)
        write_file(folder / "difference.md", self.to_markdown(examples))
        write_file(folder / "difference.json", json.dumps(self.to_dict(), indent=1) + "\n")


def compare_samplers(
    model,
    tokenizer,
    task: Task,
    baseline: str = "autoregressive",
    sampler: str = "diffusion_forcing:preset=fast",
    batch_size: int = 8,
    max_new_tokens: int = 160,
    seed: int = 0,
    progress: bool = True,
) -> Comparison:
    """Decode a task with two samplers and look at the first token of every output that differs.

    Args:
        model, tokenizer: a recurrent-depth model and its left-padding tokenizer.
        task: what is asked.
        baseline: a sampler on one line (`parse_sampler`); the model is asked how sure it is at its depth.
        sampler: the other.
        batch_size: samples decoded together.
        max_new_tokens: room for every output.
        seed: sample i is decoded with seed + i.
        progress: show a progress bar.

    Raises:
        ValueError, TypeError: an argument is wrong, or a prompt leaves no room.
    """
    check_integer("batch_size", batch_size, 1)
    check_integer("max_new_tokens", max_new_tokens, 1)
    room = {"max_new_tokens": max_new_tokens}
    exact, other = (parse_sampler(text) | room for text in (baseline, sampler))
    config, others = (model.decoding_config(**kwargs).sampler_config for kwargs in (exact, other))
    check_prompts(model, tokenizer, task, max_new_tokens)
    if SAMPLERS[others.sampler].has_ticks:
        other["return_trace"] = True
    divergences, tokens, right = [], [], []
    batches = batched(task.samples, batch_size)
    for samples in tqdm(batches, desc="batches", disable=not progress):
        theirs, mine = (run_batch(model, tokenizer, samples, kwargs, seed) for kwargs in (exact, other))
        for row, sample in enumerate(samples):
            expected, found = theirs["tokens"][row], mine["tokens"][row]
            spent = mine["spent"][row] if "spent" in mine else [(None, None)] * len(found)
            judged = (None, None)
            if sample.reference is not None:
                judged = tuple(task.is_right(sample, run["texts"][row]) for run in (theirs, mine))
                right.append(judged)
            logits = readouts(model, tokenizer, sample.prompt, expected, seed + sample.index, config)
            part = first_difference(expected, found)
            for place in range(len(expected) if part is None else part + 1):
                entropy, margin = certainty(logits[place])
                kind = token_kind(tokenizer, expected, place)
                cost = spent[place] if place < len(spent) else (None, None)
                tokens.append(TokenRecord(kind, entropy, margin, *cost, differs=place == part))
            if part is None:
                continue
            texts = [tokenizer.decode(ids[part : part + AFTER], skip_special_tokens=True) for ids in (expected, found)]
            divergences.append(
                Divergence(
                    index=sample.index,
                    position=part,
                    kind=kind,
                    before=tokenizer.decode(expected[:part], skip_special_tokens=True)[-CONTEXT:],
                    expected=tokenizer.decode(expected[part : part + 1], skip_special_tokens=True),
                    found=tokenizer.decode(found[part : part + 1], skip_special_tokens=True),
                    expected_text=texts[0],
                    found_text=texts[1],
                    entropy=entropy,
                    margin=margin,
                    rank=1 + int((logits[part] > logits[part, found[part]]).sum()) if part < len(found) else None,
                    recurrences=cost[0],
                    exit_value=cost[1],
                    expected_right=judged[0],
                    found_right=judged[1],
                )
            )
    settings = {
        "model": describe_model(model),
        "task": task.describe(),
        "baseline": baseline,
        "sampler": sampler,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "versions": versions(),
        "machine": describe_machine(model),
        "date": date.today().isoformat(),
    }
    return Comparison(task, settings, divergences, tokens, right)


@torch.no_grad()
def readouts(model, tokenizer, prompt: str, ids: list[int], seed: int, config) -> torch.Tensor:
    """What the model says at full depth about every token of an output, and about one more behind it.

    Args:
        ids: the output's tokens.
        seed: of the row.
        config: the baseline's settings, every depth filled in.

    Returns:
        float32 [tokens + 1, vocabulary], logits.
    """
    start = tokenizer(prompt).input_ids
    text = torch.tensor([start + ids], device=model.device)
    output = model(
        text,
        num_steps=config.num_steps,
        state_scale=config.state_scale,
        seeds=torch.tensor([seed], device=model.device),
        logits_to_keep=len(ids) + 1,
    )
    return output.logits[0].float()


def certainty(logits: torch.Tensor) -> tuple[float, float]:
    """Entropy of a distribution, and the log-probability of its likeliest token less the second's, both in nats.

    Args:
        logits: float32 [vocabulary].
    """
    log_probabilities = logits.log_softmax(-1)
    first, second = log_probabilities.topk(2).values.tolist()
    probabilities = log_probabilities.exp()
    return -(probabilities * log_probabilities.clamp(min=-1e4)).sum().item(), first - second


def first_difference(expected: list[int], found: list[int]) -> int | None:
    """The first place where two lists differ, the end of the shorter one where it begins the other; None if equal."""
    for place, (theirs, mine) in enumerate(zip(expected, found, strict=False)):
        if theirs != mine:
            return place
    return None if len(expected) == len(found) else min(len(expected), len(found))


def token_kind(tokenizer, ids: list[int], place: int) -> str:
    """What a token is, one of `KINDS`; a text also ends behind its last token."""
    if place == len(ids) or ids[place] in tokenizer.all_special_ids:
        return "end of text"
    text = tokenizer.decode(ids[place])
    if not text.strip():
        return "whitespace"
    if any(character.isdigit() for character in text):
        return "digit"
    return "word" if any(character.isalpha() for character in text) else "punctuation"


def cuts(values: list[float]) -> list[float] | None:
    """Median, and the values a tenth lies below and above; None where there are no values."""
    if not values:
        return None
    parts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return [parts[4], parts[0], parts[8]]


def rate(count: int, events: int) -> str:
    return f"{math.floor(count / events + 0.5):,}" if events else f"more than {count:,}"


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2g} %"


def margin_class(end: float) -> str:
    """A class of margins in words, by its upper end."""
    start = (0.0, *MARGINS)[MARGINS.index(end)]
    return f"{start:g} to {end:g}" if math.isfinite(end) else f"{start:g} and more"


def code(text: str) -> str:
    """A text in a cell of a Markdown table."""
    text = text.replace("\n", "⏎").replace("`", "'")
    return f"` {text} `" if text else "(end)"

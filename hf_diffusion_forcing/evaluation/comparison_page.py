"""The report and the figure of a comparison of two samplers, token by token."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

from .markdown import markdown_table
from .provenance import provenance

MEASURES = {
    "entropy": "entropy at full depth (nats)",
    "margin": "margin of the likeliest token (nats)",
    "recurrences": "recurrences the other spent",
    "exit_value": "exit value when committed",
}


def page(found, examples: int) -> str:
    """The report as Markdown.

    Args:
        found: the `Comparison`.
        examples: how many divergences to show, starting with those the model was surest about.
    """
    settings = found.settings
    lines = [*summary(found), ""]
    rows = [
        [kind, str(seen), str(differ), f"one in {rate(seen, differ)}"] for kind, (seen, differ) in found.by_kind.items()
    ]
    lines += markdown_table(["the baseline's token", "tokens until the texts part", "first to differ", "rate"], rows)
    if found.divergences:
        lines += ["", *sureness(found), "", "Those the model was surest about:", "", *surest(found, examples)]
    lines += [
        "",
        f"Made by `hf-diffusion-forcing diff` in {settings['model']['dtype']}, seed {settings['seed']}, on "
        f"{provenance(settings)}.",
    ]
    return "\n".join(lines) + "\n"


def summary(found) -> list[str]:
    """How many texts diverge, and how the answers change."""
    settings, count, parted = found.settings, len(found.task.samples), len(found.divergences)
    lines = [
        f"`{settings['sampler']}` against `{settings['baseline']}`, {Path(settings['model']['name']).name} on "
        f"{found.task.name}, {count} samples of at most {settings['max_new_tokens']} tokens: {count - parted} texts "
        f"are equal, {parted} diverge, one token in {rate(len(found.tokens), parted)}.",
    ]
    if found.right:
        both = Counter(found.right)
        lost, gained = both[True, False], both[False, True]
        lines += [
            "",
            f"Answers: {both[True, True]} right with both, {lost} with the baseline alone, {gained} with the other "
            f"alone, {both[False, False]} with neither.",
        ]
    return lines


def sureness(found) -> list[str]:
    """How sure the model was of the tokens that differ, and which tokens replaced them."""
    rows = [
        [margin_class(start, end), str(seen), str(differ), share(differ, seen)]
        for (start, end), (seen, differ) in found.margin_classes.items()
    ]
    lines = markdown_table(["margin at full depth (nats)", "tokens", "first to differ", "share"], rows)
    rows = []
    for name, title in MEASURES.items():
        pairs = [found.cuts(name, differs) for differs in (True, False)]
        if None not in pairs:
            rows.append([title, *("{:.3g} ({:.3g} to {:.3g})".format(*pair) for pair in pairs)])
    headings = ["median (10 % to 90 %)", "at the token that differs", "at tokens that are equal"]
    lines += ["", *markdown_table(headings, rows), ""]
    ranks = Counter(divergence.rank for divergence in found.divergences)
    lines.append(
        f"The token written instead is the model's second choice at full depth in {ranks[2]} of "
        f"{len(found.divergences)} cases, its first in {ranks[1]}."
    )
    return lines


def surest(found, examples: int) -> list[str]:
    """A table of the divergences about which the model was surest."""
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
        for each in sorted(found.divergences, key=lambda divergence: -divergence.margin)[:examples]
    ]
    return markdown_table(["sample", "token", "after", "baseline", "other", "margin", "exit value"], rows)


def draw(found, path: str | os.PathLike) -> None:
    """Draw the margins of both kinds of tokens, and how many texts are still equal at each token."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4))
    left, right = figure.subplots(1, 2)
    for differs, label in ((False, "equal"), (True, "the first that differs")):
        if values := found.values("margin", differs):
            shares = [(place + 1) / len(values) for place in range(len(values))]
            left.step(values, shares, where="post", label=f"{label} ({len(values)})")
    left.set(xlabel="margin of the likeliest token, nats", ylabel="share of tokens", ylim=(0, 1.02))
    left.legend(fontsize=8)
    count = len(found.task.samples)
    ends = sorted(divergence.position for divergence in found.divergences)
    places, left_over = [0, *ends], [count - number for number in range(len(ends) + 1)]
    right.step([*places, found.settings["max_new_tokens"]], [*left_over, left_over[-1]], where="post")
    right.set(xlabel="token of the output", ylabel="texts still the same", ylim=(0, count * 1.02))
    figure.tight_layout()
    figure.savefig(path, dpi=90, format="png")


def rate(count: int, events: int) -> str:
    return f"{math.floor(count / events + 0.5):,}" if events else f"more than {count:,}"


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2g} %"


def margin_class(start: float, end: float) -> str:
    """A margin class in words."""
    return f"{start:g} to {end:g}" if math.isfinite(end) else f"{start:g} and more"


def code(text: str) -> str:
    """A text as code in a cell of a Markdown table."""
    text = text.replace("\n", "⏎").replace("`", "'")
    return f"` {text} `" if text else "(end)"

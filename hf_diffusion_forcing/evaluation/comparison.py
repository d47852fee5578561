"""The result of a token-by-token comparison of two samplers."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import quantiles
from typing import Any

from ..files import whole_file, write_file
from .comparison_page import draw, page
from .divergent_tokens import KINDS, Divergence, TokenRecord
from .task import Task

MARGINS = (0.01, 0.03, 0.1, 0.3, 1.0, math.inf)
"""Upper ends of the margin classes, in nats."""


@dataclass
class Comparison:
    """Where a sampler's texts diverge from the baseline's, over a task.

    Attributes:
        task: the task.
        settings: all arguments, versions and the machine, as JSON values.
        divergences: at most one per sample.
        tokens: the tokens of all samples, up to the divergence.
        right: per sample, whether the baseline and the other are right; empty if nothing is judged.
    """

    task: Task
    settings: dict[str, Any]
    divergences: list[Divergence]
    tokens: list[TokenRecord]
    right: list[tuple[bool, bool]]

    @cached_property
    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Per kind of token: how many there are up to the divergence, and how many of them differ."""
        seen = Counter(token.kind for token in self.tokens)
        differ = Counter(token.kind for token in self.tokens if token.differs)
        return {kind: (seen[kind], differ[kind]) for kind in KINDS if seen[kind]}

    @cached_property
    def by_margin(self) -> dict[float, tuple[int, int]]:
        """The same per margin class, by its upper end: how often such a close choice differs."""
        classes = [(next(end for end in MARGINS if token.margin < end), token.differs) for token in self.tokens]
        seen, differ = Counter(end for end, _ in classes), Counter(end for end, differs in classes if differs)
        return {end: (seen[end], differ[end]) for end in MARGINS if seen[end]}

    @property
    def margin_classes(self) -> dict[tuple[float, float], tuple[int, int]]:
        """`by_margin`, by both ends of a class."""
        starts = dict(zip(MARGINS, (0.0, *MARGINS), strict=False))
        return {(starts[end], end): counts for end, counts in self.by_margin.items()}

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
                name: {place: self.cuts(name, differs) for place, differs in (("differ", True), ("equal", False))}
                for name in measures
            },
            "divergences": [asdict(divergence) for divergence in self.divergences],
        }

    def cuts(self, name: str, differs: bool) -> list[float] | None:
        """Median, first and last decile of `values`; None if there are none."""
        values = self.values(name, differs)
        if not values:
            return None
        parts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
        return [parts[4], parts[0], parts[8]]

    def to_markdown(self, examples: int = 5) -> str:
        """The report.

        Args:
            examples: how many divergences to show, starting with those the model was surest about.
        """
        return page(self, examples)

    def draw(self, path: str | os.PathLike) -> None:
        """Draw the margins of both kinds of tokens, and how many texts are still equal at each token."""
        draw(self, path)

    def save(self, folder: str | os.PathLike, examples: int = 5) -> None:
        """Write `difference.md`, `difference.json` and `difference.png`, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / "difference.png") as partial:
            self.draw(partial)
        write_file(folder / "difference.md", self.to_markdown(examples))
        write_file(folder / "difference.json", json.dumps(self.to_dict(), indent=1) + "\n")

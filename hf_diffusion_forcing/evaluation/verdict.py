"""The verdict on one law, and the report of all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .markdown import markdown_table
from .provenance import provenance

Outcome = Literal["holds", "rounding", "broken", "not defined"]


@dataclass(frozen=True)
class Verdict:
    """Whether a law holds for a model.

    Attributes:
        law: what must hold, as a sentence.
        sampler: the sampler that it was checked with.
        outcome: "holds"; "rounding" if texts differ only where rounding may decide; "broken"; or "not defined" for a
            sampler that the model does not support.
        detail: what was compared, or the first difference.
    """

    law: str
    sampler: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """The verdicts on all laws.

    Attributes:
        settings: model, machine, versions and arguments, as JSON values.
        verdicts: in the order of the checks.
    """

    settings: dict[str, Any]
    verdicts: list[Verdict]

    @property
    def is_broken(self) -> bool:
        """Whether a law is broken."""
        return any(verdict.outcome == "broken" for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"settings": self.settings, "verdicts": [asdict(verdict) for verdict in self.verdicts]}

    def to_markdown(self) -> str:
        """A report to attach to an issue."""
        rows = [[v.law, v.sampler, v.outcome, v.detail] for v in self.verdicts]
        model = self.settings["model"]
        return "\n\n".join(
            [
                f"# Verification of {model['name']}",
                f"{model['type']}, {model['dtype']}, weights {model['weights']}; {provenance(self.settings)}. "
                f"{self.settings['prompts']} prompts, {self.settings['max_new_tokens']} new tokens each, seed "
                f"{self.settings['seed']}. Rounding moves a logit by up to {self.settings['rounding']:.2g} "
                "(the same positions read all at once and one by one).",
                "\n".join(markdown_table(["law", "sampler", "outcome", "detail"], rows)),
            ]
        )

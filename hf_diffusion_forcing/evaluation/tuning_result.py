"""The result of a search for settings."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import whole_file, write_file
from .halving import Trial
from .stored_settings import save_with_settings
from .tuning_page import figure, page


@dataclass
class TuningResult:
    """The result of `tune`.

    Attributes:
        best: the fastest finalist within the budget on the confirmation samples; None if there is none, or if the
            search was stopped before one was confirmed.
        trials: all candidates.
        presets: the presets that the model supports, measured on the confirmation samples.
        settings: all arguments, splits, versions and the machine, as JSON values.
        stopped: "interrupt" or "time" if the search did not finish.
    """

    best: Trial | None
    trials: list[Trial]
    presets: list[Trial]
    settings: dict[str, Any]
    stopped: str | None

    @property
    def generation_settings(self) -> dict[str, Any]:
        """`sampler` and `sampler_config` for a generation config.

        Raises:
            ValueError: no settings were confirmed.
        """
        if self.best is None:
            raise ValueError(f"No settings were confirmed: {self.outcome}")
        kwargs = dict(self.best.kwargs)
        return {"sampler": kwargs.pop("sampler"), "sampler_config": kwargs}

    @property
    def outcome(self) -> str:
        """The result in one sentence."""
        if self.best is not None:
            measured = self.best.confirmation
            judged = "" if measured.loss is None else f", {measured.loss:+.1f} points of accuracy lost"
            return (
                f"{self.best.name}: {measured.speedup:.2f}x autoregression's speed{judged}, "
                f"{measured.token_agreement:.1%} equal tokens on {len(measured.samples)} other samples."
            )
        if self.stopped:
            return "The search was stopped before any settings were confirmed."
        return "No candidate kept within the budget on the confirmation samples."

    @property
    def confirmed(self) -> list[Trial]:
        """All trials measured on the confirmation samples, fastest first, each setting once."""
        measured = {}
        for trial in (*self.trials, *self.presets):
            if trial.confirmation.samples:
                measured.setdefault(trial.name, trial)
        return sorted(measured.values(), key=lambda trial: -trial.confirmation.speedup)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "best": None if self.best is None else self.best.name,
            "generation_config": None if self.best is None else self.generation_settings,
            "outcome": self.outcome,
            "stopped": self.stopped,
            "settings": self.settings,
            "trials": [trial.to_dict() for trial in self.trials],
            "presets": [trial.to_dict() for trial in self.presets],
        }

    def to_markdown(self) -> str:
        """The outcome, the results on the confirmation samples, and their provenance."""
        return page(self)

    def figure(self):
        """Accuracy (or equal tokens, without references) over speed, as a matplotlib `Figure`."""
        return figure(self)

    def write(self, folder: str | os.PathLike) -> None:
        """Write `trials.json`, `tuning.md` and `pareto.png`, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "trials.json", json.dumps(self.to_dict()) + "\n")
        write_file(folder / "tuning.md", self.to_markdown())
        with whole_file(folder / "pareto.png") as partial:
            self.figure().savefig(partial, format="png", dpi=90)

    def save(self, folder: str | os.PathLike, model, tokenizer) -> None:
        """Save a checkpoint that decodes with these settings by default.

        Args:
            folder: the model's own (only `generation_config.json` is rewritten), or a new one for the whole checkpoint.

        Raises:
            ValueError: no settings were confirmed, or the folder holds something else.
        """
        save_with_settings(folder, model, tokenizer, self.generation_settings)

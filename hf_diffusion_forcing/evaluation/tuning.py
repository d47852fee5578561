"""Choose a sampler's settings for a model on this machine, within an accuracy budget."""

from __future__ import annotations

import copy
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from transformers.utils import GENERATION_CONFIG_NAME

from ..files import whole_file, write_file
from ..hub.staging import check_destination, staged
from ..settings.generation_config import SAMPLER_NAMES
from ..settings.validation import check_integer, check_number
from .candidates import SEARCH_SPACE, check_space, choose_candidates, preset_candidates, spelling
from .evaluator import WARM_UP_TOKENS, check_prompts, describe_machine, describe_model, run_batch, versions
from .halving import FEWEST_SAMPLES, Budget, Halving, Measurement, OutOfTime, Trial
from .journal import check_writable
from .report import markdown_table, provenance
from .task import Sample, Task


@dataclass
class TuningResult:
    """What `tune` found.

    Attributes:
        best: the fastest finalist that kept within the budget on the confirmation samples; None where none did, or
            where the search was stopped before one could be confirmed.
        trials: all candidates.
        presets: the presets the model can decode by, measured on the confirmation samples.
        settings: all arguments, splits, versions and the machine, as JSON values.
        stopped: "interrupt" or "time" where the search did not come to its end.
    """

    best: Trial | None
    trials: list[Trial]
    presets: list[Trial]
    settings: dict[str, Any]
    stopped: str | None

    @property
    def generation_settings(self) -> dict[str, Any]:
        """What goes into a generation config: `sampler` and `sampler_config`.

        Raises:
            ValueError: no settings were confirmed.
        """
        if self.best is None:
            raise ValueError(f"No settings were confirmed: {self.outcome}")
        kwargs = dict(self.best.kwargs)
        return {"sampler": kwargs.pop("sampler"), "sampler_config": kwargs}

    @property
    def outcome(self) -> str:
        """In one sentence."""
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
        """Everything that was measured on the confirmation samples, the fastest first, each setting once."""
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
        """The outcome, the figures of the confirmation samples, and how they were measured."""
        settings = self.settings
        lines = [f"# Tuning {settings['model']['name']} on {settings['task']['name']}", "", self.outcome]
        if self.best is not None:
            stored = json.dumps(self.generation_settings, indent=2)
            lines += ["", "In `generation_config.json`:", "", "```text", stored, "```"]
        if self.confirmed:
            lines += ["", *confirmation_table(self.confirmed, self.best)]
        halved = ", ".join(f"{count} with {samples}" for count, samples in settings["rungs"])
        lines += [
            "",
            f"Candidates by samples: {halved}, of {len(settings['calibration'])} calibration samples. The table is of "
            f"{len(settings['confirmation'])} other samples. Speed is against autoregression at r = "
            f"{settings['num_steps']} beside each batch (in parentheses its range over the batches); batches of "
            f"{settings['batch_size']}, at most {settings['max_new_tokens']} new tokens, "
            f"{settings['model']['dtype']}. Budget: {settings['max_accuracy_loss']:g} points of accuracy, at least "
            f"{settings['min_token_agreement']:.1%} equal tokens. Measured by `hf-diffusion-forcing tune` on "
            f"{provenance(settings)}; {settings['seconds']:.0f} seconds"
            f"{f', stopped by {self.stopped}' if self.stopped else ''}.",
        ]
        return "\n".join(lines) + "\n"

    def figure(self):
        """Accuracy (equal tokens where there are no references) over speed, as a matplotlib `Figure`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.2))
        axes = figure.subplots()

        def quality(measured: Measurement) -> float:
            return 100 * (measured.token_agreement if measured.accuracy is None else measured.accuracy)

        searched = [trial.calibration for trial in self.trials if trial.calibration.samples]
        axes.scatter(
            [m.speedup for m in searched],
            [quality(m) for m in searched],
            s=[8 + 2 * len(m.samples) for m in searched],
            color="0.75",
            label="calibration (larger: more samples)",
        )
        confirmed = self.confirmed
        if confirmed:
            base = [trial.confirmation for trial in confirmed]
            axes.scatter([m.speedup for m in base], [quality(m) for m in base], color="tab:blue", label="confirmation")
            front, highest = [], -1.0
            for trial in confirmed:  # from the fastest on
                if quality(trial.confirmation) > highest:
                    highest = quality(trial.confirmation)
                    front.append((trial.confirmation.speedup, highest))
            axes.plot(*zip(*front, strict=True), color="tab:blue", linewidth=1, label="Pareto front")
            for trial in confirmed:
                if trial.preset is not None:
                    axes.annotate(
                        trial.preset,
                        (trial.confirmation.speedup, quality(trial.confirmation)),
                        xytext=(3, -6),
                        textcoords="offset points",
                        rotation=45,
                        ha="right",
                        va="top",
                        fontsize=8,
                    )
        if self.best is not None:
            chosen = self.best.confirmation
            axes.scatter([chosen.speedup], [quality(chosen)], marker="*", s=160, color="tab:red", label="chosen")
        judged = any(m.accuracy is not None for m in searched)
        axes.set(xlabel="tokens a second over autoregression's", ylabel="right, %" if judged else "equal tokens, %")
        lowest = min((quality(m) for m in searched + [trial.confirmation for trial in confirmed]), default=100)
        axes.set_ylim(max(lowest - 8, 0), 102)
        axes.legend(fontsize=8)
        figure.tight_layout()
        return figure

    def write(self, folder: str | os.PathLike) -> None:
        """Write `trials.json`, `tuning.md` and `pareto.png`, each as a whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "trials.json", json.dumps(self.to_dict()) + "\n")
        write_file(folder / "tuning.md", self.to_markdown())
        with whole_file(folder / "pareto.png") as partial:
            self.figure().savefig(partial, format="png", dpi=90)

    def save(self, folder: str | os.PathLike, model, tokenizer) -> None:
        """A checkpoint that decodes by these settings with no flag.

        Args:
            folder: the model's own (only `generation_config.json` is written anew), or a new one for all of it.

        Raises:
            ValueError: no settings were confirmed, or the folder holds something else.
        """
        settings = self.generation_settings
        with stored_sampler(model, settings):
            if is_own_folder(folder, model):
                with tempfile.TemporaryDirectory(dir=folder, prefix=".generation_config.") as stage:
                    model.generation_config.save_pretrained(stage)
                    (Path(stage) / GENERATION_CONFIG_NAME).replace(Path(folder) / GENERATION_CONFIG_NAME)
            else:
                with staged(folder) as stage:
                    model.save_pretrained(stage)
                    tokenizer.save_pretrained(stage)


@contextmanager
def stored_sampler(model, settings: dict[str, Any]) -> Iterator[None]:
    """For a while, a model whose generation config has these sampler settings in the place of its own."""
    before = model.generation_config
    model.generation_config = copy.copy(before)
    for name in SAMPLER_NAMES:
        setattr(model.generation_config, name, settings.get(name))
    try:
        yield
    finally:
        model.generation_config = before


def is_own_folder(folder: str | os.PathLike, model) -> bool:
    """Whether a folder is the one a model was loaded from."""
    return is_same_folder(folder, model.config.name_or_path)


def is_same_folder(folder: str | os.PathLike, source: str | os.PathLike) -> bool:
    return Path(source).is_dir() and Path(folder).resolve() == Path(source).resolve()


def check_save(folder: str | os.PathLike, source: str | os.PathLike) -> None:
    """Refuse a folder that tuned settings cannot be saved in, before anything is measured.

    Args:
        source: folder or Hub id of the model.

    Raises:
        ValueError: the folder cannot be written, or holds something other than the model.
    """
    if not is_same_folder(folder, source):
        check_destination(folder)
    check_writable(folder)


def tune(
    model,
    tokenizer,
    task: Task,
    max_accuracy_loss: float = 0.5,
    min_token_agreement: float = 0.0,
    space: dict[str, dict[str, Any]] | None = None,
    trials: int = 32,
    finalists: int = 3,
    calibration_share: float = 0.5,
    batch_size: int = 1,
    max_new_tokens: int = 160,
    num_steps: int | None = None,
    seed: int = 0,
    minutes: float | None = None,
    progress: bool = True,
    measure: Callable[..., dict[str, Any]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **generate_kwargs,
) -> TuningResult:
    """Search for the fastest settings that lose no more accuracy than allowed against autoregression at full depth.

    The task's samples are split in two. Successive halving over the first part drops candidates that lose
    significantly more than allowed and those that are slow, and gives the others more samples. The last few are
    measured on the second part, which has had no part in the choice: the fastest of them that keeps within the budget
    there is the result. All candidates decode a batch one after the other, beside autoregression on the same batch.

    Ctrl+C and the end of the time return what has been confirmed by then.

    Args:
        model, tokenizer: a recurrent-depth model and its left-padding tokenizer.
        task: prompts like those that will be decoded, with references (or with `min_token_agreement`).
        max_accuracy_loss: points (per cent of the samples), 0 to 100.
        min_token_agreement: share of autoregression's tokens that must stand at the same place, 0 to 1.
        space: by sampler, values of its settings; `SEARCH_SPACE` and the presets when None.
        trials: how many candidates to try.
        finalists: how many of them to confirm.
        calibration_share: of the samples, for the search.
        batch_size: samples decoded together: tune for what you will use.
        max_new_tokens: room for every output.
        num_steps: recurrences of autoregression, and the budget of a token; `mean_recurrence` when None.
        seed: of the split, of the candidates, and of the latent states (sample i is decoded with seed + i).
        minutes: about how long the search may take; as long as it needs when None.
        progress: show a progress bar.
        measure: decodes samples by keywords of `generate()`, in the place of `run_batch`.
        clock: seconds.
        generate_kwargs: of every `generate()` call: `stop_strings`, ...

    Raises:
        ValueError, TypeError: an argument is wrong, a split is too small, or the model cannot decode this way. Nothing
            has been computed then.
    """
    began = clock()
    check_number("max_accuracy_loss", max_accuracy_loss, 100.0)
    check_number("min_token_agreement", min_token_agreement, 1.0)
    counts = {"trials": trials, "finalists": finalists, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    for name, value in (counts | ({} if num_steps is None else {"num_steps": num_steps})).items():
        check_integer(name, value, 1)
    if minutes is not None:
        check_number("minutes", minutes)
        if minutes == 0:
            raise ValueError("minutes=0 leaves no time to measure: leave it out, or give more.")
    if space is not None:
        check_space(space)
    if not task.is_judged and min_token_agreement == 0:
        raise ValueError(
            f"{task.name} has no references, so accuracy is unknown: name a reference column, or hold candidates to "
            "autoregression's text with min_token_agreement (--min-token-agreement 0.95)."
        )
    calibration, confirmation = split(task, calibration_share, seed)
    check_prompts(model, tokenizer, task, max_new_tokens)
    depth = {} if num_steps is None else {"num_steps": num_steps}
    baseline = {"sampler": "autoregressive"} | depth
    common = generate_kwargs | {"max_new_tokens": max_new_tokens}

    def decode(samples: tuple[Sample, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return run_batch(model, tokenizer, samples, kwargs | common, seed)

    with stored_sampler(model, {}):  # what is stored would mix with every candidate
        candidates, presets = trials_for(model, space, trials, seed, depth, common)
        halving = Halving(
            candidates,
            calibration,
            measure or decode,
            baseline,
            Budget(max_accuracy_loss, min_token_agreement),
            batch_size,
            finalists,
            None if minutes is None else began + 60 * minutes,
            clock,
            progress,
        )
        halving.plan(confirmation, len(presets))
        best, stopped = None, None
        try:
            if measure is None:  # the first calls of a process pay for lazy initialisation
                few = common | {"max_new_tokens": min(WARM_UP_TOKENS, max_new_tokens)}
                for kwargs in (baseline, *(trial.kwargs for trial in candidates)):
                    run_batch(model, tokenizer, calibration.samples[:batch_size], kwargs | few, seed)
            for trial in halving.search(reserve=len(confirmation.samples)):
                halving.confirm(confirmation, [trial])
                if best is None and halving.budget.keeps(trial.confirmation):
                    best = trial
            halving.confirm(confirmation, presets)
        except OutOfTime:
            stopped = "time"
        except KeyboardInterrupt:
            stopped = "interrupt"
        halving.bar.close()
    settings = {
        "model": describe_model(model) | {"name": Path(model.config.name_or_path).name},
        "task": task.describe(),
        "calibration": [sample.index for sample in calibration.samples],
        "confirmation": [sample.index for sample in confirmation.samples],
        "max_accuracy_loss": max_accuracy_loss,
        "min_token_agreement": min_token_agreement,
        "space": SEARCH_SPACE if space is None else space,
        "rungs": halving.rungs,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "num_steps": num_steps or model.config.mean_recurrence,
        "seed": seed,
        "minutes": minutes,
        "generate": generate_kwargs,
        "versions": versions(),
        "machine": describe_machine(model),
        "date": date.today().isoformat(),
        "seconds": clock() - began,
    }
    return TuningResult(best, candidates, presets, settings, stopped)


def trials_for(
    model, space: dict[str, dict[str, Any]] | None, count: int, seed: int, depth: dict[str, int], common: dict[str, Any]
) -> tuple[list[Trial], list[Trial]]:
    """The candidates, and the presets the model can decode by; no two candidates mean the same.

    Args:
        depth: `num_steps`, where it is not the model's own.
        common: other keywords of every `generate()` call.

    Raises:
        ValueError: the model can decode by no candidate.
    """

    def canonical(kwargs: dict[str, Any]) -> str | None:
        try:
            config = model.decoding_config(**kwargs | depth | common)
        except ValueError:
            return None
        return json.dumps([kwargs["sampler"], config.sampler_config.to_dict()], sort_keys=True)

    full = depth.get("num_steps", model.config.mean_recurrence)
    named = preset_candidates(model.config.model_type, full)
    presets = {name: kwargs for name, kwargs in named.items() if canonical(kwargs) is not None}
    first = list(presets.values()) if space is None else []
    chosen = choose_candidates(SEARCH_SPACE if space is None else space, count, seed, canonical, first)
    names = {canonical(kwargs): name for name, kwargs in presets.items()}
    return (
        [Trial(spelling(kwargs | depth), kwargs | depth, preset=names.get(canonical(kwargs))) for kwargs in chosen],
        [Trial(spelling(kwargs | depth), kwargs | depth, preset=name) for name, kwargs in presets.items()],
    )


def split(task: Task, share: float, seed: int) -> tuple[Task, Task]:
    """Calibration and confirmation.

    Raises:
        ValueError: one of them would be too small.
    """
    parts = task.split(share, seed) if len(task.samples) > 1 else (task, task)
    for name, part in zip(("calibration", "confirmation"), parts, strict=True):
        if len(part.samples) < FEWEST_SAMPLES or len(task.samples) < 2:
            raise ValueError(
                f"{task.name} has {len(task.samples)} samples, and the {name} split would have {len(part.samples)}: "
                f"each needs at least {FEWEST_SAMPLES}. Give more samples, or another share for the calibration."
            )
    return parts


def confirmation_table(trials: list[Trial], best: Trial | None) -> list[str]:
    """Markdown of what was measured on the confirmation samples."""
    headings = ["settings", "speed", "tokens/s", "right", "points lost", "equal tokens", "core passes a token"]
    rows = []
    for trial in trials:
        m = trial.confirmation.to_dict()
        name = f"`{trial.name}`" + (f" (preset {trial.preset})" if trial.preset else "")
        judged = m["accuracy"] is not None
        cells = [
            f"**{name}**" if trial is best else name,
            f"{m['speedup']:.2f}x ({m['speedup_range'][0]:.1f} to {m['speedup_range'][1]:.1f})",
            f"{m['tokens_per_second']:.1f}",
            f"{m['accuracy']:.1%} ({m['accuracy_low']:.0%} to {m['accuracy_high']:.0%})" if judged else "",
            f"{m['accuracy_loss']:.1f}" if judged else "",
            f"{m['token_agreement']:.1%}",
            f"{m['core_passes_per_token']:.2f}",
        ]
        rows.append(cells)
    return markdown_table(headings, rows)

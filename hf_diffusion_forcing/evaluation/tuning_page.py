"""The summary and the figure of a search for settings."""

from __future__ import annotations

import json

from .halving import Measurement, Trial
from .markdown import markdown_table
from .provenance import provenance


def page(found) -> str:
    """The outcome, the results on the confirmation samples, and their provenance."""
    settings = found.settings
    lines = [f"# Tuning {settings['model']['name']} on {settings['task']['name']}", "", found.outcome]
    if found.best is not None:
        stored = json.dumps(found.generation_settings, indent=2)
        lines += ["", "In `generation_config.json`:", "", "```text", stored, "```"]
    if found.confirmed:
        lines += ["", *confirmation_table(found.confirmed, found.best)]
    halved = ", ".join(f"{count} with {samples}" for count, samples in settings["rungs"])
    lines += [
        "",
        f"Candidates by samples: {halved}, of {len(settings['calibration'])} calibration samples. The table is of "
        f"{len(settings['confirmation'])} other samples. Speedups are relative to autoregression at r = "
        f"{settings['num_steps']} timed next to each batch (in parentheses the range over batches); batches of "
        f"{settings['batch_size']}, at most {settings['max_new_tokens']} new tokens, "
        f"{settings['model']['dtype']}. Budget: {settings['max_accuracy_loss']:g} points of accuracy, at least "
        f"{settings['min_token_agreement']:.1%} equal tokens. Measured by `hf-diffusion-forcing tune` on "
        f"{provenance(settings)}; {settings['seconds']:.0f} seconds"
        f"{f', stopped by {found.stopped}' if found.stopped else ''}.",
    ]
    return "\n".join(lines) + "\n"


def confirmation_table(trials: list[Trial], best: Trial | None) -> list[str]:
    """The results on the confirmation samples as Markdown."""
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


def quality(measured: Measurement) -> float:
    """Per cent of right answers, or of equal tokens without references."""
    return 100 * (measured.token_agreement if measured.accuracy is None else measured.accuracy)


def figure(found):
    """Accuracy (or equal tokens, without references) over speed, as a matplotlib `Figure`."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4.2))
    axes = drawn.subplots()
    searched = [trial.calibration for trial in found.trials if trial.calibration.samples]
    axes.scatter(
        [m.speedup for m in searched],
        [quality(m) for m in searched],
        s=[8 + 2 * len(m.samples) for m in searched],
        color="0.75",
        label="calibration (larger: more samples)",
    )
    if found.confirmed:
        draw_confirmed(axes, found.confirmed)
    if found.best is not None:
        chosen = found.best.confirmation
        axes.scatter([chosen.speedup], [quality(chosen)], marker="*", s=160, color="tab:red", label="chosen")
    judged = any(m.accuracy is not None for m in searched)
    axes.set(xlabel="tokens a second over autoregression's", ylabel="right, %" if judged else "equal tokens, %")
    lowest = min((quality(m) for m in searched + [trial.confirmation for trial in found.confirmed]), default=100)
    axes.set_ylim(max(lowest - 8, 0), 102)
    axes.legend(fontsize=8)
    drawn.tight_layout()
    return drawn


def draw_confirmed(axes, trials: list[Trial]) -> None:
    """Draw the confirmed trials (fastest first) as points, the presets' names, and the Pareto front."""
    points = [(trial.confirmation.speedup, quality(trial.confirmation)) for trial in trials]
    axes.scatter(*zip(*points, strict=True), color="tab:blue", label="confirmation")
    front, highest = [], -1.0
    for speedup, reached in points:
        if reached > highest:
            highest = reached
            front.append((speedup, highest))
    axes.plot(*zip(*front, strict=True), color="tab:blue", linewidth=1, label="Pareto front")
    for trial, point in zip(trials, points, strict=True):
        if trial.preset is not None:
            axes.annotate(
                trial.preset,
                point,
                xytext=(3, -6),
                textcoords="offset points",
                rotation=45,
                ha="right",
                va="top",
                fontsize=8,
            )

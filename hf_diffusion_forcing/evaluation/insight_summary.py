"""A `RecurrenceInsight` by depth, by token and in plain words."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import torch

from .provenance import describe_machine, describe_model, versions
from .recurrence_insight import VERDICTS, RecurrenceInsight
from .settling import AT_REST, HORIZON

SHOWN = 10
"""Tokens of text that are shown with a position, up to its own."""

NAMED = 5
"""Drifting positions that are named."""


def by_depth(insight: RecurrenceInsight) -> list[dict[str, Any]]:
    """One record for each depth, over all positions.

    Keys: `recurrences`, `change` and `change_90` (median and 90 % quantile of the state's change), `agreement` (share
    of readouts that equal the last one's), `divergence` (mean KL divergence of the last distribution from this one,
    nats), `entropy` (mean, nats), `exited` (share that has met the exit criterion so far), `settled` (share of readouts
    that are estimated not to change any more). Values that are not finite are None.
    """
    exited = insight.exits.cummax(0).values.float().mean(1)
    columns = {
        "change": insight.quantile(0.5),
        "change_90": insight.quantile(0.9),
        "agreement": insight.agreement,
        "divergence": insight.divergences.mean(1),
        "entropy": insight.entropies.mean(1),
        "exited": exited,
        "settled": insight.settled.float().mean(1),
    }
    rows = zip(*(values.tolist() for values in columns.values()), strict=True)
    return [
        {"recurrences": depth, **{name: finite(value) for name, value in zip(columns, row, strict=True)}}
        for depth, row in enumerate(rows, 1)
    ]


def by_token(insight: RecurrenceInsight, tokenizer) -> list[dict[str, Any]]:
    """One record for each position, in order.

    Keys: `row`, `position`, `is_new`, `token_id`, `before` (the end of the text up to this token), `predicted` (text of
    the readout at the last depth), `needed` (first depth from which the readout stays the same), `exit` (first depth at
    which the exit criterion is met; None if it never is), `verdict`, and at the last depth `change`, `contraction`,
    `margin` (nats) and `sway`. Values that are not finite are None.
    """
    exits = insight.exit_depths.tolist()
    values = {
        "row": insight.rows.tolist(),
        "position": insight.positions.tolist(),
        "is_new": insight.is_new.tolist(),
        "token_id": insight.input_ids.tolist(),
        "before": [text_before(insight, tokenizer, place) for place in range(len(insight))],
        "predicted": [tokenizer.decode([token]) for token in insight.readouts[-1].tolist()],
        "needed": insight.needed.tolist(),
        "exit": [None if depth > insight.num_steps else depth for depth in exits],
        "verdict": insight.verdicts,
    }
    for name in ("change", "contraction", "margin", "sway"):
        values[name] = list(map(finite, getattr(insight, f"{name}s")[-1].tolist()))
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def text_before(insight: RecurrenceInsight, tokenizer, place: int) -> str:
    """The text that ends with a position's own token; `place` is the position's index in the insight."""
    first = max(place - min(SHOWN - 1, int(insight.positions[place])), 0)
    return tokenizer.decode(insight.input_ids[first : place + 1].tolist())


def findings(insight: RecurrenceInsight) -> list[str]:
    """What the numbers say, in sentences."""
    count, steps = len(insight), insight.num_steps
    needed = insight.needed.float()
    said = [
        f"A readout stays equal to that after {steps} recurrences from depth {needed.mean():.1f} on, on average; for "
        f"90 % of the {count} positions from depth {needed.quantile(0.9):.0f} on.",
    ]
    exits = insight.exit_depths
    met = exits <= steps
    if bool(met.any()):
        at = exits[met]
        readouts = insight.readouts.gather(0, (exits.clamp_max(steps) - 1)[None])[0]
        same = (readouts == insight.readouts[-1])[met].float().mean()
        said.append(
            f"The exit criterion {criterion_name(insight)} is met at {share(int(met.sum()), count)} of the positions, "
            f"after {at.float().mean():.1f} recurrences on average; {100 * same:.1f} % of the readouts there equal the "
            "last one."
        )
    else:
        said.append(f"The exit criterion {criterion_name(insight)} is met at no position.")
    said += settled_sentences(insight) + drift_sentences(insight)
    if not insight.has_readable_shallow_states:
        said.append(
            f"As far as is known, {insight.model_name} was trained to be read out after its last recurrence only: "
            "shallow readouts may be untrained, so a low agreement at small depths is no sign of slow settling."
        )
    return said


def settled_sentences(insight: RecurrenceInsight) -> list[str]:
    """How many choices are settled, and whether the estimate held at smaller depths."""
    count = len(insight)
    settled, converged = insight.count("settled"), insight.count("converged")
    said = [
        f"Settled: the choice at {share(settled, count)} of the positions has a margin larger than what further "
        f"recurrences are estimated to move it. At {share(converged, count)} only the exit criterion is met."
    ]
    early, changed = insight.overturned
    if early:
        said.append(
            f"Check of the estimate: of {early:,} readouts that were settled before the last depth, {changed:,} "
            f"({100 * changed / early:.2f} %) differ from the last one."
        )
    return said


def drift_sentences(insight: RecurrenceInsight) -> list[str]:
    """Positions and models that do not settle."""
    count, verdicts = len(insight), insight.verdicts
    said = []
    moving, drifting = verdicts.count("moving"), verdicts.count("drifting")
    if moving:
        said.append(
            f"At {share(moving, count)} of the positions the state still moves after {insight.num_steps} recurrences, "
            "but less and less."
        )
    if drifting:
        places = [place for place, verdict in enumerate(verdicts) if verdict == "drifting"]
        last = insight.changes[-1, places].nan_to_num(math.inf).median()
        named = ", ".join(
            f"{int(insight.positions[place])} of text {int(insight.rows[place]) + 1}" for place in places[:NAMED]
        )
        more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
        said.append(
            f"Drift: at {share(drifting, count)} of the positions the state does not settle. It still changes by "
            f"{100 * last:.2g} % a recurrence, and this does not fall with depth, or so slowly that {HORIZON} more "
            f"recurrences would not bring it below {100 * AT_REST:g} % (position {named}{more})."
        )
        if 2 * drifting > count:
            said.append(
                f"This model drifts on these texts: after {insight.num_steps} recurrences, readouts depend on where "
                "you stop. Use the depth it was trained with; exit criteria and diffusion forcing have nothing to wait "
                "for."
            )
    return said


def report(insight: RecurrenceInsight, tokenizer, model, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything as JSON values, with where it was measured.

    Args:
        model: the inspected model.
        settings: of the call.
    """
    early, changed = insight.overturned
    return {
        "model": describe_model(model),
        "settings": settings | {"num_steps": insight.num_steps, "exit_criterion": criterion_name(insight)},
        "has_readable_shallow_states": insight.has_readable_shallow_states,
        "findings": findings(insight),
        "verdicts": {verdict: insight.count(verdict) for verdict in VERDICTS},
        "settled_early": {"readouts": early, "changed": changed},
        "by_depth": by_depth(insight),
        "by_token": by_token(insight, tokenizer),
        "versions": versions(),
        "machine": describe_machine(model),
        "date": date.today().isoformat(),
    }


def criterion_name(insight: RecurrenceInsight) -> str:
    """The exit criterion and its threshold."""
    return insight.criterion + ("" if insight.threshold is None else f" (threshold {insight.threshold:g})")


def most_needed(insight: RecurrenceInsight, count: int) -> list[int]:
    """Indices of the positions whose readouts changed last; ties by the depth of their exit."""
    order = torch.argsort(insight.needed * (insight.num_steps + 2) + insight.exit_depths, descending=True, stable=True)
    return order[:count].tolist()


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({100 * part / whole:.1f} %)"

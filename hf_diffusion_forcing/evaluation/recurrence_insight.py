"""What every recurrence did to the positions of some texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ..hooks.settling import rounding_floor
from .settling import contraction, drifts, is_settled

VERDICTS = ("settled", "converged", "moving", "drifting")


@dataclass(kw_only=True, eq=False)
class RecurrenceInsight:
    """What every recurrence did to the positions of some texts, and what each position's readout was.

    Positions of all rows are end to end, without padding: n in all. All tensors are on the CPU. A position's readout
    predicts the token after it; depth k is that after k recurrences, at index k - 1.

    Attributes:
        model_name: class of the model.
        has_readable_shallow_states: see `RecurrentDepthInterface`.
        criterion: name of the exit criterion.
        threshold: its threshold; None if it has none.
        dtype: of the states.
        input_ids: int64 [n].
        rows: int64 [n], index of each position's row.
        positions: int64 [n], counted from the row's first token.
        is_new: bool [n], tokens that the model wrote itself.
        changes: float32 [num_steps, n], ||s_k - s_(k-1)|| / ||s_k||, as `latent_difference` has it.
        readouts: int64 [num_steps, n], the likeliest next token.
        margins: float32 [num_steps, n], log-probability of the likeliest token minus that of the second, in nats.
        entropies: float32 [num_steps, n], of the next token's distribution, in nats.
        divergences: float32 [num_steps, n], KL(p_last, p_k) in nats, with p_last the distribution at the last depth.
        sways: float32 [num_steps, n], share of the margin that a recurrence moved; see `hooks.settling`.
        exits: bool [num_steps, n], where the exit criterion says that the position has converged.
        exit_values: float32 [num_steps, n], what the criterion compared with its threshold; NaN if it has no values.
    """

    model_name: str
    has_readable_shallow_states: bool
    criterion: str
    threshold: float | None
    dtype: torch.dtype
    input_ids: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    is_new: torch.Tensor
    changes: torch.Tensor
    readouts: torch.Tensor
    margins: torch.Tensor
    entropies: torch.Tensor
    divergences: torch.Tensor
    sways: torch.Tensor
    exits: torch.Tensor
    exit_values: torch.Tensor
    contractions: torch.Tensor = field(init=False)
    """float32 [num_steps, n], the measured contraction factor; see `hooks.settling`."""

    def __post_init__(self):
        self.contractions = contraction(self.changes, self.floor)

    @property
    def num_steps(self) -> int:
        return len(self.changes)

    @property
    def floor(self) -> float:
        """Changes up to this one may be rounding."""
        return rounding_floor(self.dtype)

    def __len__(self) -> int:
        return len(self.input_ids)

    # --- by position ---

    @property
    def needed(self) -> torch.Tensor:
        """int64 [n], the first depth from which the readout stays equal to the last one's."""
        differs = self.readouts != self.readouts[-1]
        depths = torch.arange(2, self.num_steps + 2)[:, None]
        return (differs * depths).amax(0).clamp_min(1)

    @property
    def exit_depths(self) -> torch.Tensor:
        """int64 [n], the first depth at which the exit criterion is met; `num_steps` + 1 if it never is."""
        depths = torch.arange(1, self.num_steps + 1)[:, None]
        return torch.where(self.exits, depths, self.num_steps + 1).amin(0)

    @property
    def settled(self) -> torch.Tensor:
        """bool [num_steps, n], where later recurrences are estimated not to change the readout."""
        return is_settled(self.sways, self.contractions)

    @property
    def verdicts(self) -> list[str]:
        """What can be said of each position after the last recurrence, one of `VERDICTS`.

        "settled": the margin is larger than what further recurrences are estimated to move it. "converged": only the
        exit criterion is met. "drifting": neither, and the state would not come to rest in many more recurrences (see
        `evaluation.settling.drifts`). "moving": the others.
        """
        drifting = drifts(self.changes, self.floor)
        said = zip(self.settled[-1].tolist(), self.exits[-1].tolist(), drifting.tolist(), strict=True)
        return [
            "settled" if settled else "converged" if converged else "drifting" if drifting else "moving"
            for settled, converged, drifting in said
        ]

    def count(self, verdict: str) -> int:
        """How many positions have a verdict."""
        return self.verdicts.count(verdict)

    # --- by depth ---

    @property
    def agreement(self) -> torch.Tensor:
        """float32 [num_steps], share of positions whose readout equals the last one's."""
        return (self.readouts == self.readouts[-1]).float().mean(1)

    def quantile(self, share: float) -> torch.Tensor:
        """float32 [num_steps], a quantile of the changes over positions; NaN if a state is not finite."""
        return self.changes.quantile(share, dim=1)

    @property
    def overturned(self) -> tuple[int, int]:
        """A check of the estimate: readouts that were settled before the last depth, and those of them that changed.

        A position counts once for every depth.
        """
        early = self.settled[:-1]
        return int(early.sum()), int((early & (self.readouts[:-1] != self.readouts[-1])).sum())

    # --- as a whole ---

    @classmethod
    def joined(cls, parts: Sequence[RecurrenceInsight]) -> RecurrenceInsight:
        """Several batches as one; rows are counted on.

        Args:
            parts: one or more, of the same model and settings.
        """
        if len(parts) == 1:
            return parts[0]
        values: dict[str, Any] = {each.name: getattr(parts[0], each.name) for each in fields(cls) if each.init}
        first, rows = 0, []
        for part in parts:
            rows.append(part.rows + first)
            first = int(rows[-1].max()) + 1
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = torch.cat([getattr(part, name) for part in parts], dim=-1)
        return cls(**values | {"rows": torch.cat(rows)})

    def row(self, row: int) -> RecurrenceInsight:
        """One row alone, as row 0.

        Raises:
            IndexError: there is no such row.
        """
        own = self.rows == row
        if not bool(own.any()):
            raise IndexError(f"row={row} is not one of the {int(self.rows.max()) + 1} rows.")
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.init}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = value[..., own]
        return RecurrenceInsight(**values | {"rows": torch.zeros_like(values["rows"])})

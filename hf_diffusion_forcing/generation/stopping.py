"""Decides when a row ends, checking every stop after each committed token."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

ROW_BY_ROW = (MaxTimeCriteria, StopStringCriteria)
"""Criteria that can check a row without the others. Subclasses do not count."""


class Stopping:
    """The stops that depend on one row only. A row ends exactly at the token that meets one.

    Args:
        eos: ids that end a text.
        max_length: the most ids a row may have.
        criteria: called after every token, with only that row.
        device: device of the ids that criteria get.
    """

    def __init__(self, eos: set[int], max_length: int, criteria: StoppingCriteriaList, device: torch.device):
        self.eos, self.max_length, self.criteria, self.device = eos, max_length, criteria, device

    @classmethod
    def of(
        cls, stopping_criteria: StoppingCriteriaList, rows: int, device: torch.device
    ) -> tuple[Stopping, StoppingCriteriaList]:
        """Split criteria into the stops of single rows and the criteria that need the whole batch."""
        eos, by_row, by_batch = set(), StoppingCriteriaList(), StoppingCriteriaList()
        for criterion in stopping_criteria:
            if type(criterion) is EosTokenCriteria:
                eos.update(criterion.eos_token_id.flatten().tolist())
            elif type(criterion) is not MaxLengthCriteria:
                (by_row if rows == 1 or _knows_one_row(criterion) else by_batch).append(criterion)
        return cls(eos, stopping_criteria.max_length, by_row, device), by_batch

    def has_ended(self, ids: list[int], scores: Iterable[torch.Tensor] | None) -> bool:
        """Whether the last id of a row meets a stop.

        Args:
            ids: all ids of the row, including the prompt.
            scores: the scores of each new token, if kept.
        """
        ended = ids[-1] in self.eos or len(ids) >= self.max_length
        if self.criteria:
            stacked = None if scores is None else tuple(step[None] for step in scores)
            ended = bool(self.criteria(torch.tensor([ids], device=self.device), stacked).any()) or ended
        return ended


def _knows_one_row(criterion: StoppingCriteria) -> bool:
    return type(criterion) in ROW_BY_ROW

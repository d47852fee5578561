"""Decides which positions of a wave become final."""

from collections.abc import Sequence


def frozen_prefix(
    tokens: Sequence[int],
    predictions: Sequence[int],
    has_converged: Sequence[bool],
    steps: Sequence[int],
    recurrences: int,
    budget: int,
) -> int:
    """How many positions at the front of a row's wave freeze.

    A position freezes when all positions before it freeze and it has converged, or one more tick would exceed its
    budget. A position whose token is a wrong draft never freezes: it has converged to the wrong thing.

    Args:
        tokens: the id at each position; the first is committed, the others are drafts.
        predictions: the next token each position predicts.
        has_converged: the exit criterion's verdict on each.
        steps: recurrences each had before this tick, since its token last changed.
        recurrences: core passes in a tick.
        budget: the most recurrences of a position at the front.
    """
    for place, (converged, spent) in enumerate(zip(has_converged, steps, strict=True)):
        if place > 0 and tokens[place] != predictions[place - 1]:
            return place
        is_exhausted = spent + 2 * recurrences > budget
        if not (converged or is_exhausted):
            return place
    return len(tokens)

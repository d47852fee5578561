"""Which positions of a wave become final."""

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

    A position freezes when it has converged, or when one more tick would take it past its budget, and every position
    before it freezes too. A position whose own token is a wrong draft has converged to the wrong thing: it waits.

    Args:
        tokens: the id at each position; the first is committed, the others are drafts.
        predictions: the next token each position predicts.
        has_converged: what the exit criterion says of each.
        steps: recurrences each had before this tick, since its token last changed.
        recurrences: of a tick.
        budget: the most recurrences of a position at the front.
    """
    for place, (converged, spent) in enumerate(zip(has_converged, steps, strict=True)):
        if place > 0 and tokens[place] != predictions[place - 1]:
            return place
        is_exhausted = spent + 2 * recurrences > budget
        if not (converged or is_exhausted):
            return place
    return len(tokens)

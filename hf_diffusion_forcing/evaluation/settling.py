"""Whether a latent state settles with depth, and whether a readout can still change, after every recurrence of a text.

The estimate itself is that of the exit criterion "settling": see `hooks.settling`. Here all depths are known.
"""

import torch

from ..hooks.latent_criteria import LatentDifferenceCriterion
from ..hooks.settling import WINDOW, contraction_factor, remaining_sway

AT_REST = LatentDifferenceCriterion.threshold
"""A state that changes by less than this share of its norm hardly moves."""

HORIZON = 32
"""Further recurrences that a state has to come to rest."""


def contraction(changes: torch.Tensor, floor: float) -> torch.Tensor:
    """The contraction factor q after every recurrence.

    Args:
        changes: float32 [num_steps, n], c_1, c_2, ...
        floor: changes up to this one are rounding; see `hooks.settling.rounding_floor`.

    Returns:
        float32 [num_steps, n]; NaN after the first recurrence, which has nothing to compare with, and where a state is
        not finite; 0 where a state has been at rest from the beginning.
    """
    unknown = torch.full_like(changes[0], torch.nan)
    rows = [contraction_factor(changes[0], unknown, 1, unknown, floor)]
    for depth in range(1, len(changes)):
        ticks = min(depth, WINDOW)
        rows.append(contraction_factor(changes[depth], changes[depth - ticks], ticks, rows[-1], floor))
    return torch.stack(rows)


def is_settled(sways: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """bool, True where the remaining recurrences are estimated not to change the readout; shapes as given."""
    return remaining_sway(sways, factors) < 1


def drifts(changes: torch.Tensor, floor: float) -> torch.Tensor:
    """bool [n], True where the state would not come to rest in `HORIZON` more recurrences, and where it is not finite.

    The change is taken to fall on at its mean rate over the second half of the recurrences. (Over a few recurrences,
    the change of a state that wanders rises and falls by chance.) After one recurrence no rate is known.

    Args:
        changes: float32 [num_steps, n].
        floor: see `contraction`.
    """
    last = len(changes) - 1
    middle = last // 2
    if last == middle:
        return ~changes[last].isfinite()
    rate = (changes[last] / changes[middle]) ** (1 / (last - middle))
    comes_to_rest = (changes[last] <= floor) | (changes[last] * rate**HORIZON < AT_REST)
    return ~comes_to_rest

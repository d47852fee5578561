"""Whether a latent state settles with depth, and whether a readout can still change: estimates from measured changes.

Let c_k be the relative change of a position's state in recurrence k (`latent_difference`), and z_k the logits after it.

- The contraction factor q_k is the geometric mean of c_k / c_(k-1) over the last `WINDOW` recurrences. Once the state
  moves by no more than rounding, q stays as it was before.
- Let t be the likeliest token after recurrence k and g_v = z[t] - z[v] its lead over token v. The sway of the readout
  is the largest |g_v(k) - g_v(k-1)| / g_v(k) over all v: the share of a lead that one recurrence moves.
- If every later recurrence moves the leads by q_k times the move before it, all of them together move a lead by at most
  q_k / (1 - q_k) times the last move. The choice of t is settled if sway * q_k / (1 - q_k) < 1.

This is an estimate, not a proof: q is measured on the state's past changes, and a later recurrence may contract less.
(arXiv 2608.18222 has the idea of comparing a margin with what remains of a contraction.)
"""

import math

import torch

from ..hooks.latent_criteria import LatentDifferenceCriterion

WINDOW = 4
"""Recurrences over which a contraction factor is measured."""

AT_REST = LatentDifferenceCriterion.threshold
"""A state that changes by less than this share of its norm hardly moves."""

HORIZON = 32
"""Further recurrences that a state has to come to rest."""


def rounding_floor(dtype: torch.dtype) -> float:
    """The largest relative change of a state that may be rounding alone.

    Sums round too in float32; those of 16-bit types are float32, and only their results are rounded. Converged states
    of the bundled checkpoint change by up to 10 eps in float32 and 1.8 eps in bfloat16.
    """
    return (16 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps


def contraction(changes: torch.Tensor, floor: float) -> torch.Tensor:
    """The contraction factor q after every recurrence.

    Args:
        changes: float32 [num_steps, n], c_1, c_2, ...
        floor: changes up to this one are rounding; see `rounding_floor`.

    Returns:
        float32 [num_steps, n]; NaN after the first recurrence, which has nothing to compare with, and where a state is
        not finite; 0 where a state has been at rest from the beginning.
    """
    rows = [torch.zeros_like(changes[0]).masked_fill(~(changes[0] <= floor), math.nan)]
    for depth in range(1, len(changes)):
        first = max(depth - WINDOW, 0)
        factor = (changes[depth] / changes[first]) ** (1 / (depth - first))
        at_rest = (changes[depth] <= floor) | (changes[first] <= floor)
        rows.append(torch.where(at_rest, rows[-1], factor))
    return torch.stack(rows)


def sway(logits: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The largest share of the likeliest token's leads that a recurrence has moved.

    Args:
        logits, before: float32 [n, vocabulary], after a recurrence and before it.

    Returns:
        float32 [n]; inf at a tie, NaN where a logit is not finite.
    """
    best = logits.argmax(-1, keepdim=True)
    lead = logits.gather(-1, best) - logits
    moved = (lead - (before.gather(-1, best) - before)).abs()
    # A tie may go either way, even if nothing has moved it so far.
    share = torch.where(lead == 0, math.inf, moved / lead)
    return share.scatter(-1, best, 0.0).amax(-1)


def is_settled(sways: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """bool, True where the remaining recurrences are estimated not to change the readout; shapes as given."""
    return (factors < 1) & (sways * factors / (1 - factors) < 1)


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

"""Whether the remaining recurrences can still change what a position predicts: an estimate from measured changes.

Let c be the relative change of a position's state in a tick (`latent_difference`; a tick is one recurrence in the
adaptive sampler, `inner_recurrence` of them in diffusion forcing), and z the logits after it.

- The contraction factor q is the geometric mean of c / c_before over the last `WINDOW` ticks. Once the state moves by
  no more than rounding, q stays as it was before.
- Let t be the likeliest token and g_v = z[t] - z[v] its lead over token v. The sway of the readout is the largest
  |g_v - g_v before| / g_v over all v (in a tick, over the
  `CANDIDATES` likeliest): the share of a lead that one tick moves.
- If every later tick moves the leads by q times the move before it, all of them together move a lead by at most
  q / (1 - q) times the last move. So sway * q / (1 - q), the remaining sway, is the largest share of a lead that the
  remaining recurrences move, and the choice of t is settled if it is less than 1.

This is an estimate, not a proof: q is measured on the state's past changes, and a later recurrence may contract less.
(arXiv 2608.18222 has the idea of comparing a margin with what remains of a contraction.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from .exit_criterion import DistanceCriterion, register_exit_criterion, since_last_tick
from .latent_criteria import latent_difference
from .refinement import Refinement

WINDOW = 4
"""Ticks over which a contraction factor is measured."""

CANDIDATES = 8
"""The likeliest tokens whose logits the exit criterion compares. With the whole vocabulary, the estimate hardly differs
and costs 9 times as much (32 positions and 65,536 tokens on a CPU)."""


def rounding_floor(dtype: torch.dtype) -> float:
    """The largest relative change of a state that may be rounding alone.

    Sums round too in float32; those of 16-bit types are float32, and only their results are rounded. Converged states
    of the bundled checkpoint change by up to 10 eps in float32 and 1.8 eps in bfloat16.
    """
    return (16 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps


def contraction_factor(
    change: torch.Tensor, earlier: torch.Tensor, ticks: int | torch.Tensor, before: torch.Tensor, floor: float
) -> torch.Tensor:
    """The mean factor by which a state's change shrinks in a tick, float32; shapes as given.

    Args:
        change: float32, the change of the state in this tick.
        earlier: float32, its change some ticks ago; NaN if it is not known.
        ticks: how many ticks ago, 1 or more.
        before: float32, the factor a tick ago; NaN if it is not known.
        floor: changes up to this one are rounding; see `rounding_floor`.

    Returns:
        NaN where `change` or `earlier` is; 0 where the state is at rest and was never seen to move.
    """
    exponent = 1 / ticks if isinstance(ticks, int) else ticks.to(change).reciprocal()
    factor = (change.clamp_min(floor) / earlier.clamp_min(floor)) ** exponent
    at_rest = torch.where(before < 1, before, factor.masked_fill(~(factor < 1), 0.0))
    return torch.where(change <= floor, at_rest, factor)


def sway(logits: torch.Tensor, before: torch.Tensor, candidates: int | None = None) -> torch.Tensor:
    """The largest share of the likeliest token's leads that a tick has moved.

    Args:
        logits, before: [..., vocabulary], after a tick and before it.
        candidates: compare only so many of the likeliest tokens; all when None.

    Returns:
        float32 [...]; inf at a tie, NaN where the highest logit is not finite, or one before it was not.
    """
    if candidates is not None and candidates < logits.shape[-1]:
        logits, tokens = logits.topk(candidates, dim=-1)
        before = before.gather(-1, tokens)
    logits, before = logits.float(), before.float()
    top, best = logits.max(-1, keepdim=True)
    lead = top - logits
    moved = (lead - (before.gather(-1, best) - before)).abs()
    # A tie may go either way, even if nothing has moved it so far. A token whose logit is -inf is no rival.
    share = (moved / lead).masked_fill(lead == 0, math.inf).masked_fill(lead == math.inf, 0.0)
    return share.scatter(-1, best, 0.0).amax(-1).masked_fill(~top[..., 0].isfinite(), math.nan)


def remaining_sway(sways: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The largest share of a lead that all remaining ticks are estimated to move, float32; inf if there is no bound."""
    remaining = sways * factors / (1 - factors)
    return remaining.masked_fill(~(factors < 1), math.inf).nan_to_num(nan=math.inf, posinf=math.inf)


def remaining_sway_of(refinement: Refinement) -> torch.Tensor:
    """The remaining sway of a tick's positions, float32 [batch, width].

    The exit criterion and the trace share one computation. It remembers, for each position, the logits (in their own
    dtype, without a copy), `WINDOW` changes of the state, and two numbers.
    """
    if "settling.remaining" in refinement.remembered:
        return refinement.remembered["settling.remaining"]
    sways = since_last_tick(refinement, "settling.logits", refinement.logits, _sway_of_candidates)
    factors = _factor_since_last_tick(refinement).to(sways.device)
    remaining = remaining_sway(sways, factors)
    refinement.remember("settling.remaining", remaining)
    return remaining


def _sway_of_candidates(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    return sway(now, before, CANDIDATES)


def _factor_since_last_tick(refinement: Refinement) -> torch.Tensor:
    """The contraction factor of a tick's positions, float32 [batch, width]."""
    change = latent_difference(refinement.states, refinement.before)
    fresh = refinement.fresh.to(change.device)
    history, before = refinement.recall("settling.changes"), refinement.recall("settling.factor")
    if history is None:
        history = change.new_full((*change.shape, WINDOW), math.nan)
        before = torch.full_like(change, math.nan)
    history = history.masked_fill(fresh[..., None], math.nan)
    # Changes on another input token say little about this one, but the last of them bounds the move to the new token.
    ticks = (refinement.steps // refinement.recurrences).clamp(1, WINDOW).to(change.device)
    earlier = history.gather(-1, ticks[..., None] - 1)[..., 0]
    floor = rounding_floor(refinement.states.dtype)
    factor = contraction_factor(change, earlier, ticks, before.masked_fill(fresh, math.nan), floor)
    refinement.remember("settling.changes", torch.cat((change[..., None], history[..., :-1]), dim=-1))
    refinement.remember("settling.factor", factor)
    return factor


@register_exit_criterion
@dataclass
class SettlingCriterion(DistanceCriterion):
    """The remaining recurrences are estimated to move no lead of the likeliest token by more than `threshold` of it.

    The remaining sway (see `hooks.settling`) is below the threshold. 1 is the bare estimate; a smaller threshold is a
    safety factor: with 0.1 the margin is ten times what the remaining recurrences can move it. In `generate()` it also
    makes up for what later tokens lose when they read the keys and values of shallow exits. Reads the model's raw
    logits, before processors and sampling. A new position needs two ticks. Cost: the readout and a top-8 of it;
    remembers the logits and `WINDOW` + 2 numbers per position.

    Args:
        threshold: 0 or more.
    """

    name: ClassVar[str] = "settling"
    needs_logits: ClassVar[bool] = True
    threshold: float = 0.01

    def distance(self, refinement: Refinement) -> torch.Tensor:
        return remaining_sway_of(refinement)

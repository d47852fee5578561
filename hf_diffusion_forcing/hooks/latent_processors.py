"""The latent processors that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..randomness import fold_in
from ..settings.validation import check_number, nearest
from .latent_processor import LatentProcessor, register_latent_processor
from .refinement import Refinement


def _fresh(refinement: Refinement, like: torch.Tensor) -> torch.Tensor:
    """`refinement.fresh` as bool [batch, width, 1] on the device of `like`."""
    return refinement.fresh.to(like.device)[..., None]


@register_latent_processor
@dataclass
class EmbeddingMomentum(LatentProcessor):
    """e <- (1 - eta) e + eta e_before, if the position existed in the last tick (arXiv 2510.14961, Algorithm 1).

    e_before is the last tick's mixed embedding. Remembers one [batch, width, channels]. Only e is mixed: a model that
    also reads the ids themselves (Parcae's value embeddings) reads those of the current draft.

    Args:
        eta: between 0 and 1.
    """

    name: ClassVar[str] = "embedding_momentum"
    eta: float = 0.1

    def __post_init__(self):
        check_number("eta", self.eta, 1.0)

    def process_embedding(self, e: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        before = refinement.recall("embedding_momentum.embedding")
        if before is not None:
            e = torch.where(_fresh(refinement, e), e, torch.lerp(e, before, self.eta))
        refinement.remember("embedding_momentum.embedding", e)
        return e


SCHEDULES = {
    "constant": lambda steps, budget: torch.ones_like(steps),
    "linear": lambda steps, budget: (1 - steps / budget).clamp_min(0),
    "square_root": lambda steps, budget: (1 - steps / budget).clamp_min(0).sqrt(),
    "dampened": lambda steps, budget: 1 / (1 + steps),
}


@register_latent_processor
@dataclass
class StateNoise(LatentProcessor):
    """s <- (1 - b) s + b noise before the recurrences, with fresh noise like that of s0 (arXiv 2510.14961).

    b depends on k, the recurrences since the position's token last changed, and on the budget K: "constant" is beta,
    "linear" beta max(0, 1 - k / K), "square_root" beta sqrt(max(0, 1 - k / K)), "dampened" beta / (1 + k).
    The noise is keyed by (seed, position, k), so it does not depend on the batch or the wave.

    Args:
        beta: between 0 and 1.
        schedule: one of the four.
    """

    name: ClassVar[str] = "state_noise"
    beta: float = 0.1
    schedule: str = "constant"

    def __post_init__(self):
        check_number("beta", self.beta, 1.0)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule={self.schedule!r} is unknown{nearest(str(self.schedule), tuple(SCHEDULES))}.")

    def share(self, steps: torch.Tensor, budget: int) -> torch.Tensor:
        """b after `steps` recurrences, float32 [batch, width]."""
        return self.beta * SCHEDULES[self.schedule](steps.float(), budget)

    def process_state(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        seeds = fold_in(refinement.seeds, refinement.steps + 1)
        noise = refinement.model.initialize_state(state, refinement.positions, seeds, 1.0)
        share = self.share(refinement.steps, refinement.budget).to(state.device)[..., None]
        return torch.lerp(state.float(), noise.to(state.device).float(), share).type_as(state)


@register_latent_processor
@dataclass
class ContinuousCompute(LatentProcessor):
    """A new position starts from the state of the position on its left instead of from noise (arXiv 2502.05171).

    Several neighbouring new positions all take the state of the last old one. If the row has none, as in its first
    tick, they keep their noise.
    """

    name: ClassVar[str] = "continuous_compute"

    def process_start(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        fresh, rows = refinement.fresh.to(state.device), refinement.rows.to(state.device)
        columns = torch.arange(state.shape[1], device=state.device)
        source = columns.masked_fill(fresh, -1).cummax(dim=1).values
        neighbour = state.gather(1, source.clamp_min(0)[..., None].expand_as(state))
        is_of_row = (source >= 0) & (rows.gather(1, source.clamp_min(0)) == rows)
        return torch.where((fresh & is_of_row)[..., None], neighbour, state)


@register_latent_processor
@dataclass
class LatentMomentum(LatentProcessor):
    """s <- s + mu (s - s_before) after the recurrences: makes each tick's step a little longer.

    Experimental. s_before is the state at the start of the tick. New positions, which start from noise, do not change.
    A criterion that compares states sees the longer step.

    Args:
        mu: between 0 and 1.
    """

    name: ClassVar[str] = "latent_momentum"
    mu: float = 0.1

    def __post_init__(self):
        check_number("mu", self.mu, 1.0)

    def process_refined(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        before = refinement.before.float()
        further = torch.lerp(before, state.float(), 1 + self.mu).type_as(state)
        return torch.where(_fresh(refinement, state), state, further)


@register_latent_processor
@dataclass
class AndersonAcceleration(LatentProcessor):
    """Anderson acceleration of the fixed point s = G(s) over two ticks, separately for each position, in float32.

    Let x be the states at the start of a tick, g = G(x) those after its recurrences, and f = g - x. Then
    theta = `<f, f - f_before> / ||f - f_before||^2`, and s <- g - theta (g - g_before).

    Experimental. A position keeps s = g if it is new or its token has just changed (so the last tick had another G), if
    ||f - f_before|| is too small to divide by (below 1% of ||f||, or lost in g's rounding), or if the result is not
    finite. Remembers two tensors [batch, width, channels].
    """

    name: ClassVar[str] = "anderson"

    def process_refined(self, state: torch.Tensor, refinement: Refinement) -> torch.Tensor:
        memory = [refinement.recall(f"anderson.{what}") for what in ("starts", "ends")]
        refinement.remember("anderson.starts", refinement.before)
        refinement.remember("anderson.ends", state)
        if None in memory:
            return state
        x_before, g_before, x, g = (tensor.float() for tensor in (*memory, refinement.before, state))
        f = g - x
        change = f - (g_before - x_before)
        squared = change.square().sum(-1, keepdim=True)
        theta = (f * change).sum(-1, keepdim=True) / squared
        accelerated = (g - theta * (g - g_before)).type_as(state)
        smallest = torch.maximum(0.01 * f.norm(dim=-1), torch.finfo(state.dtype).eps * g.norm(dim=-1)).square()
        usable = (squared > smallest[..., None]) & accelerated.isfinite().all(-1, keepdim=True)
        usable &= ~_fresh(refinement, state) & (refinement.steps > 0).to(state.device)[..., None]
        return torch.where(usable, accelerated, state)

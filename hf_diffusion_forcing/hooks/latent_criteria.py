"""Criteria that look at the latent states alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..settings.validation import check_integer, check_number
from .exit_criterion import DistanceCriterion, ExitCriterion, register_exit_criterion, since_last_tick
from .refinement import RefinedModel, Refinement


def latent_difference(state: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Normalised latent difference ||s - s_before|| / ||s|| in float32 (arXiv 2510.14961, section 4.2).

    Args:
        state, before: [batch, width, channels], the same positions' states a tick apart.

    Returns:
        float32 [batch, width]; NaN where a state is not finite, which compares as not converged.
    """
    state, before = state.float(), before.to(state.device).float()
    return torch.linalg.vector_norm(state - before, dim=-1) / torch.linalg.vector_norm(state, dim=-1)


@register_exit_criterion
@dataclass
class LatentDifferenceCriterion(DistanceCriterion):
    """||s - s_before|| / ||s|| < threshold, s_before the state at the start of the tick.

    arXiv 2510.14961, section 4.2, with its threshold. A new position is compared with the state it started from.
    Cost: two norms a position; no memory.
    """

    name: ClassVar[str] = "latent_difference"
    threshold: float = 0.03

    def distance(self, refinement: Refinement) -> torch.Tensor:
        return latent_difference(refinement.states, refinement.before)


@register_exit_criterion
@dataclass
class LatentAccelerationCriterion(DistanceCriterion):
    """||d - d_before|| / ||s|| < threshold, with d = s - s_before of this tick and d_before of the last one.

    The second difference of arXiv 2509.23314, divided by the state's norm so that its scale is `latent_difference`'s.
    Small steps that turn are told from steps that settle; a state that drifts evenly counts as converged.
    Cost: two norms a position; remembers one float32 [batch, width, channels].
    """

    name: ClassVar[str] = "latent_acceleration"
    threshold: float = 0.03

    def distance(self, refinement: Refinement) -> torch.Tensor:
        state = refinement.states.float()

        def relative(before: torch.Tensor, difference: torch.Tensor) -> torch.Tensor:
            norm = torch.linalg.vector_norm
            return norm(difference - before, dim=-1) / norm(state, dim=-1)

        return since_last_tick(
            refinement, "latent_acceleration.difference", state - refinement.before.float(), relative
        )


@register_exit_criterion
@dataclass
class CosineCriterion(DistanceCriterion):
    """1 - cos(s, s_before) < threshold, s_before the state at the start of the tick.

    Blind to a change of length. Cost: three sums a position; no memory. A zero state never converges.
    """

    name: ClassVar[str] = "cosine"
    threshold: float = 1e-3

    def distance(self, refinement: Refinement) -> torch.Tensor:
        state, before = refinement.states.float(), refinement.before.float()
        norms = torch.linalg.vector_norm(state, dim=-1) * torch.linalg.vector_norm(before, dim=-1)
        # Rounding may take a cosine past 1.
        return (1 - (state * before).sum(-1) / norms).clamp_min(0)


@register_exit_criterion
@dataclass
class FixedCriterion(ExitCriterion):
    """`steps` recurrences on an unchanged input token: a schedule, the baseline of the others.

    Cost: one look at whether the states are finite; no memory.

    Args:
        steps: recurrences, 1 or more.
    """

    name: ClassVar[str] = "fixed"
    steps: int = 8

    def __post_init__(self):
        check_integer("steps", self.steps, 1)

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        finite = refinement.states.isfinite().all(-1)
        return finite & (refinement.steps + refinement.recurrences >= self.steps).to(finite.device)


@register_exit_criterion
@dataclass
class ExitGateCriterion(ExitCriterion):
    """The model's own gate: the probability that it has left by now has reached `threshold`.

    With g_t the gate's probability after recurrence t of a token, the position has left with probability
    1 - (1 - g_1) ... (1 - g_t) (arXiv 2510.25741, Ouro's Q-exit). Where a tick makes several recurrences the gate
    sees the last of them alone. Cost: one map to a number; remembers a number a position.

    Args:
        threshold: between 0 (after the first recurrence) and 1 (never before the budget); the model config's
            `early_exit_threshold` when None.
    """

    name: ClassVar[str] = "exit_gate"
    threshold: float | None = None

    def __post_init__(self):
        if self.threshold is not None:
            check_number("threshold", self.threshold, 1.0)

    def check_model(self, model: RefinedModel) -> None:
        if not model.has_exit_gate:
            raise ValueError(
                f"exit_criterion={self.name!r} needs a model with an exit gate; {type(model).__name__} has none. Use "
                "another criterion, such as 'latent_difference' or 'kl'."
            )

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        threshold = self.threshold
        if threshold is None:
            threshold = refinement.model.config.early_exit_threshold
        remaining = torch.sigmoid(-refinement.model.exit_gate(refinement.states).float())
        before = refinement.recall("exit_gate.remaining")
        if before is not None:
            begun = (refinement.steps > 0).to(remaining.device)
            remaining = torch.where(begun, before * remaining, remaining)
        refinement.remember("exit_gate.remaining", remaining)
        refinement.exit_values = left = 1 - remaining
        # Rounding takes a probability to 1 long before a model means it.
        return (left >= threshold) & (threshold < 1)

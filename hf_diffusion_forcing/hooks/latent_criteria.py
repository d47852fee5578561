"""Exit criteria that read only the latent states."""

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
        float32 [batch, width]; NaN where a state is not finite, which counts as not converged.
    """
    state, before = state.float(), before.to(state.device).float()
    return torch.linalg.vector_norm(state - before, dim=-1) / torch.linalg.vector_norm(state, dim=-1)


@register_exit_criterion
@dataclass
class LatentDifferenceCriterion(DistanceCriterion):
    """||s - s_before|| / ||s|| < threshold, s_before the state at the start of the tick.

    arXiv 2510.14961, section 4.2, with its threshold. A new position is compared with its initial state.
    Cost: two norms per position; no memory.
    """

    name: ClassVar[str] = "latent_difference"
    threshold: float = 0.03

    def distance(self, refinement: Refinement) -> torch.Tensor:
        return latent_difference(refinement.states, refinement.before)


@register_exit_criterion
@dataclass
class LatentAccelerationCriterion(DistanceCriterion):
    """||d - d_before|| / ||s|| < threshold, with d = s - s_before of this tick and d_before of the last one.

    The second difference of arXiv 2509.23314, divided by the state's norm to have the scale of `latent_difference`.
    Small steps that keep changing direction do not count as converged; a state that drifts evenly does.
    Cost: two norms per position; remembers one float32 [batch, width, channels].
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

    Ignores changes of length. A zero state never converges. Cost: three sums per position; no memory.
    """

    name: ClassVar[str] = "cosine"
    threshold: float = 1e-3

    def distance(self, refinement: Refinement) -> torch.Tensor:
        state, before = refinement.states.float(), refinement.before.float()
        norms = torch.linalg.vector_norm(state, dim=-1) * torch.linalg.vector_norm(before, dim=-1)
        # Rounding may push a cosine above 1.
        return (1 - (state * before).sum(-1) / norms).clamp_min(0)


@register_exit_criterion
@dataclass
class FixedCriterion(ExitCriterion):
    """`steps` recurrences on an unchanged input token: a fixed schedule, the baseline for the others.

    Cost: one finiteness check of the states; no memory.

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
    """The model's own gate: its cumulative exit probability has reached `threshold`.

    If g_t is the gate's probability after recurrence t of a token, the cumulative probability is
    1 - (1 - g_1) ... (1 - g_t) (arXiv 2510.25741, Ouro's Q-exit). If a tick has several recurrences, the gate sees
    only the last one. Cost: one linear map to a number; remembers one number per position.

    Args:
        threshold: from 0 (exit after the first recurrence) to 1 (never before the budget); the model config's
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
        # Rounding can make a probability 1 long before the model is that sure.
        return (left >= threshold) & (threshold < 1)

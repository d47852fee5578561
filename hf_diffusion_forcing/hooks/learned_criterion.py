"""An exit criterion that was fitted to a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from .exit_criterion import DistanceCriterion, register_exit_criterion
from .refinement import RefinedModel, Refinement


@register_exit_criterion
@dataclass
class LearnedCriterion(DistanceCriterion):
    """The model's exit probe estimates a chance below `threshold` that full depth predicts another token.

    The probe belongs to the model's decoding heads (`hf-diffusion-forcing fit`). It reads a state and its last change,
    and learned from states one recurrence apart. Cost: a map to 64 numbers; no memory.

    Args:
        threshold: between 0 and 1; the one that was calibrated when the heads were fitted when None.
    """

    name: ClassVar[str] = "learned"
    usual_threshold: ClassVar[float] = 0.01
    threshold: float | None = None  # type: ignore[assignment]  # None until it meets a model

    def __post_init__(self):
        if self.threshold is not None:
            super().__post_init__()

    def check_model(self, model: RefinedModel) -> None:
        heads = model.decoding_heads
        if heads is None or not heads.has_exit_probe:
            raise ValueError(
                f"exit_criterion={self.name!r} needs an exit probe, and this model has none: run `hf-diffusion-forcing "
                "fit`, or use another criterion, such as 'latent_difference'."
            )
        if self.threshold is None and heads.risk is None:
            raise ValueError(
                f"exit_criterion={self.name!r} needs a threshold: none was found for this model's exit probe that "
                "keeps its risk. Pass exit_threshold=, such as 0.01."
            )

    def distance(self, refinement: Refinement) -> torch.Tensor:
        return refinement.model.decoding_heads.exit_chance(refinement.states, refinement.before)

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        refinement.exit_values = distance = self.distance(refinement)
        threshold = self.threshold
        return distance < (refinement.model.decoding_heads.risk.threshold if threshold is None else threshold)

"""Checks the result of an exit criterion."""

import torch

from ..hooks.exit_criterion import ExitCriterion
from ..hooks.refinement import Refinement


def verdict(criterion: ExitCriterion, refinement: Refinement) -> torch.Tensor:
    """Which positions have converged, bool [1, n].

    Raises:
        ValueError: the criterion returned something else.
    """
    said = criterion(refinement)
    if said.dtype != torch.bool or said.shape != refinement.positions.shape:
        raise ValueError(
            f"{type(criterion).__name__} returned {said.dtype} {tuple(said.shape)}: an exit criterion "
            f"must return bool {tuple(refinement.positions.shape)}, one verdict per position."
        )
    return said

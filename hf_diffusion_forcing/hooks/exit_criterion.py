"""Exit criteria decide when a position has converged.

A criterion reads a `Refinement` and decides for every position whether its state is final. All criteria compute in
float32; states and logits that are not finite never count as converged.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..settings.registry import EXIT_CRITERIA
from ..settings.validation import check_number
from .refinement import RefinedModel, Refinement


class ExitCriterion(ABC):
    """Decides which positions have converged; called once a tick, after the recurrences (and the readout).

    Subclass it as a dataclass and pass an instance; `register_exit_criterion` gives it a name for settings.

    Attributes:
        name: its name in settings.
        needs_logits: whether it reads `logits` or `predictions`; the states are then decoded first.
    """

    name: ClassVar[str]
    needs_logits: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, refinement: Refinement) -> torch.Tensor:
        """bool [batch, width], True where the position has converged."""

    def check_model(self, model: RefinedModel) -> None:  # noqa: B027 (most criteria work with every model)
        """Called once before decoding: raise a ValueError if the model lacks something the criterion reads."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which `exit_criterion` makes an equal criterion; TypeError for an unregistered class."""
        return EXIT_CRITERIA.to_dict(self)


def register_exit_criterion(criterion_class: type[ExitCriterion]) -> type[ExitCriterion]:
    """Class decorator: registers your criterion under its `name` for settings. Put it above `@dataclass`.

    Raises:
        TypeError: the class is not a dataclass, does not subclass `ExitCriterion`, or has no `name`.
        ValueError: the name belongs to another class.
    """
    return EXIT_CRITERIA.register(criterion_class)


@dataclass
class DistanceCriterion(ExitCriterion):
    """Converged where a distance is below `threshold`. NaN never is; with `threshold=0` nothing converges.

    Args:
        threshold: 0 or more.

    Raises:
        TypeError, ValueError: the threshold is not a number, or is negative or infinite.
    """

    threshold: float

    def __post_init__(self):
        check_number("threshold", self.threshold)

    @abstractmethod
    def distance(self, refinement: Refinement) -> torch.Tensor:
        """float32 [batch, width], 0 or more, or NaN; inf if there is nothing to compare with yet."""

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        refinement.exit_values = distance = self.distance(refinement)
        return distance < self.threshold


def since_last_tick(
    refinement: Refinement,
    key: str,
    value: torch.Tensor,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """distance(last tick's value, value) [batch, width], inf where there is no last value; remembers the value."""
    before = refinement.recall(key)
    refinement.remember(key, value)
    if before is None:
        return torch.full(value.shape[:2], math.inf, dtype=torch.float32, device=value.device)
    return distance(before, value).masked_fill(refinement.fresh.to(value.device), math.inf)


@dataclass
class ExitCriterionList(ExitCriterion):
    """Several criteria as one: a position has converged when any, or all, of them are met.

    Every criterion is called in every tick, because some compare each tick with the last.

    Args:
        criteria: one or more.
        mode: "any" or "all".

    Raises:
        TypeError: an element of `criteria` is not an `ExitCriterion`.
        ValueError: there are no criteria, or the mode is unknown.
    """

    name: ClassVar[str] = "list"
    criteria: list[ExitCriterion]
    mode: str = "any"

    def __post_init__(self):
        if self.mode not in ("any", "all"):
            raise ValueError(f"mode={self.mode!r} is unknown: use 'any' or 'all'.")
        self.criteria = list(self.criteria)
        if not self.criteria:
            raise ValueError("criteria=[] is empty: pass one or more exit criteria.")
        for criterion in self.criteria:
            if not isinstance(criterion, ExitCriterion):
                raise TypeError(f"criteria holds {criterion!r}: use exit_criterion() to make an ExitCriterion of it.")

    @property
    def needs_logits(self) -> bool:  # type: ignore[override]  # as the criteria it was made of
        return any(criterion.needs_logits for criterion in self.criteria)

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        verdicts = [criterion(refinement) for criterion in self.criteria]
        refinement.exit_values = None  # the last criterion's are not the list's
        verdicts = torch.stack([verdict.to(verdicts[0].device) for verdict in verdicts])
        return verdicts.any(0) if self.mode == "any" else verdicts.all(0)

    def check_model(self, model: RefinedModel) -> None:
        for criterion in self.criteria:
            criterion.check_model(model)

    def to_dict(self) -> dict[str, Any]:
        return {self.mode: [criterion.to_dict() for criterion in self.criteria]}


def exit_criterion(spec: ExitCriterion | str | dict | list, threshold: float | None = None) -> ExitCriterion:
    """An exit criterion from settings.

    Args:
        spec: a name in `EXIT_CRITERIA`; a dict {"name": ..., **parameters}; {"any": [...]} or {"all": [...]} of
            these; a list of these, which means "any"; or an instance, which is returned unchanged.
        threshold: overrides the criterion's own `threshold`.

    Raises:
        TypeError: `spec` is none of these, or a parameter has the wrong type.
        ValueError: a name or parameter is unknown (suggests the nearest), a value is out of range, a list is empty, or
            the criterion has no `threshold` to override.
    """
    if isinstance(spec, (list, tuple)):
        spec = {"any": spec}
    if isinstance(spec, dict) and not {"any", "all"}.isdisjoint(spec):
        if len(spec) > 1 or not isinstance(next(iter(spec.values())), (list, tuple)):
            raise ValueError(f"exit_criterion={spec!r} must be {{'any': [...]}} or {{'all': [...]}} and nothing else.")
        ((mode, criteria),) = spec.items()
        criterion: ExitCriterion = ExitCriterionList([exit_criterion(one) for one in criteria], mode)
    else:
        criterion = EXIT_CRITERIA.build(spec)
    if threshold is None:
        return criterion
    if not (dataclasses.is_dataclass(criterion) and any(f.name == "threshold" for f in dataclasses.fields(criterion))):
        raise ValueError(
            f"exit_threshold={threshold} does not apply to {type(criterion).__name__}, which has no threshold: "
            "leave it out, or set each criterion's parameters in its dict."
        )
    return dataclasses.replace(criterion, threshold=threshold)

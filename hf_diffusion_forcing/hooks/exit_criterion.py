"""When has a position converged?

A criterion looks at a `Refinement` and says, for every position, whether its state may be taken as final. All work in
float32; a state or logits that are not finite never count as converged.
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
        name: what settings call it.
        needs_logits: whether it reads `logits` or `predictions`, so that the states must be decoded first.
    """

    name: ClassVar[str]
    needs_logits: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, refinement: Refinement) -> torch.Tensor:
        """bool [batch, width], True where the position has converged."""

    def check_model(self, model: RefinedModel) -> None:  # noqa: B027 (most models have what most read)
        """Called once before anything is computed: raise a ValueError for a model that lacks what this reads."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `exit_criterion` makes an equal criterion from; TypeError for an unregistered class."""
        return EXIT_CRITERIA.to_dict(self)


def register_exit_criterion(criterion_class: type[ExitCriterion]) -> type[ExitCriterion]:
    """Class decorator: lets settings name your own criterion. It stands above `@dataclass`.

    Raises:
        TypeError: not a dataclass that subclasses `ExitCriterion`, or without a `name`.
        ValueError: the name belongs to another class.
    """
    return EXIT_CRITERIA.register(criterion_class)


@dataclass
class DistanceCriterion(ExitCriterion):
    """Converged where a distance is below `threshold`. NaN is below nothing; nothing is below 0, which means never.

    Args:
        threshold: 0 or more.

    Raises:
        TypeError, ValueError: a threshold that is not such a number.
    """

    threshold: float

    def __post_init__(self):
        check_number("threshold", self.threshold)

    @abstractmethod
    def distance(self, refinement: Refinement) -> torch.Tensor:
        """float32 [batch, width], 0 or more, or NaN; inf where there is nothing to compare with yet."""

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        refinement.exit_values = distance = self.distance(refinement)
        return distance < self.threshold


def since_last_tick(
    refinement: Refinement,
    key: str,
    value: torch.Tensor,
    distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """distance(value a tick ago, value) [batch, width], inf at a first observation; remembers the value."""
    before = refinement.recall(key)
    refinement.remember(key, value)
    if before is None:
        return torch.full(value.shape[:2], math.inf, device=value.device)
    return distance(before, value).masked_fill(refinement.fresh.to(value.device), math.inf)


@dataclass
class ExitCriterionList(ExitCriterion):
    """Several criteria as one: a position has converged when any of them, or all of them, say so.

    Every criterion is asked in every tick, since those that compare ticks must see each.

    Args:
        criteria: one or more.
        mode: "any" or "all".

    Raises:
        TypeError: something in `criteria` is not an `ExitCriterion`.
        ValueError: no criteria, or an unknown mode.
    """

    name: ClassVar[str] = "list"
    criteria: list[ExitCriterion]
    mode: str = "any"

    def __post_init__(self):
        if self.mode not in ("any", "all"):
            raise ValueError(f"mode={self.mode!r} is unknown: use 'any' or 'all'.")
        self.criteria = list(self.criteria)
        if not self.criteria:
            raise ValueError("criteria=[] decides nothing: give one or more exit criteria.")
        for criterion in self.criteria:
            if not isinstance(criterion, ExitCriterion):
                raise TypeError(f"criteria holds {criterion!r}: use exit_criterion() to make an ExitCriterion of it.")

    @property
    def needs_logits(self) -> bool:  # type: ignore[override]  # as the criteria it was made of
        return any(criterion.needs_logits for criterion in self.criteria)

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        verdicts = [criterion(refinement) for criterion in self.criteria]
        refinement.exit_values = None  # the last one's would pass for the list's
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
            such; a list of such, which is "any"; or an instance, which is returned as it is.
        threshold: takes the place of the criterion's own `threshold`.

    Raises:
        TypeError: `spec` is none of these, or a parameter has the wrong type.
        ValueError: an unknown name or parameter (names the nearest), a value out of range, an empty list, or a
            `threshold` for a criterion that has none.
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
            f"exit_threshold={threshold} has no place in {type(criterion).__name__}, which has no threshold: "
            "leave it out, or set the parameters of each criterion in its dict."
        )
    return dataclasses.replace(criterion, threshold=threshold)

"""When has a position converged?

Each criterion looks at a `Refinement` and says, for every position, whether its state may be taken as final. All work
in float32; a state or logits that are not finite never count as converged.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..settings.registry import Registry
from ..settings.validation import check_integer, check_number
from .refinement import Refinement

if TYPE_CHECKING:
    from ..models.interface import RecurrentDepthInterface


def latent_difference(state: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Normalised latent difference ||s - s_before|| / ||s|| in float32 (arXiv 2510.14961, section 4.2).

    Args:
        state, before: [batch, width, channels], the same positions' states a tick apart.

    Returns:
        float32 [batch, width]; NaN where a state is not finite, which compares as not converged.
    """
    state, before = state.float(), before.to(state.device).float()
    return torch.linalg.vector_norm(state - before, dim=-1) / torch.linalg.vector_norm(state, dim=-1)


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

    def check_model(self, model: RecurrentDepthInterface) -> None:  # noqa: B027 (most models have what most read)
        """Called once before anything is computed: raise a ValueError for a model that lacks what this reads."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `exit_criterion` makes an equal criterion from; TypeError for an unregistered class."""
        return EXIT_CRITERIA.to_dict(self)


EXIT_CRITERIA = Registry(ExitCriterion, "exit_criterion")
"""The criteria settings may name."""


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


def _since_last_tick(
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

        return _since_last_tick(
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
class EntropyCriterion(DistanceCriterion):
    """|H - H_before| < threshold, in nats, with H = -sum p log p of softmax(logits) in this tick and the last.

    The change of the entropy, as "entropy-diff" in Huginn's published code, not the entropy itself: a position may be
    settled and unsure. Cost: the readout and one softmax; remembers a number a position.
    """

    name: ClassVar[str] = "entropy"
    needs_logits: ClassVar[bool] = True
    threshold: float = 1e-3

    def distance(self, refinement: Refinement) -> torch.Tensor:
        # entr(0) is 0: a token whose logit is -inf adds nothing.
        entropy = torch.special.entr(refinement.logits.float().softmax(-1)).sum(-1)
        return _since_last_tick(refinement, "entropy.entropy", entropy, lambda before, now: (now - before).abs())


def _kl_divergence(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """KL(p_before || p) [batch, width] from log-probabilities [batch, width, vocabulary]."""
    p = before.exp()
    terms = torch.where(p == 0, 0.0, p * (before - now))  # 0 * -inf would be NaN
    return terms.sum(-1).clamp_min(0)  # rounding may take a divergence below 0


def _kl_since_last_tick(refinement: Refinement, divergence=_kl_divergence) -> torch.Tensor:
    # One key for all criteria that compare distributions: they remember the same tensor.
    return _since_last_tick(refinement, "kl.log_probs", refinement.logits.float().log_softmax(-1), divergence)


@register_exit_criterion
@dataclass
class KLCriterion(DistanceCriterion):
    """KL(p_before || p) < threshold, in nats, between softmax(logits) of the last tick and of this one.

    arXiv 2502.05171, zero-shot adaptive compute, with its threshold. Cost: the readout and two passes over the
    vocabulary; remembers one float32 [batch, width, vocabulary].
    """

    name: ClassVar[str] = "kl"
    needs_logits: ClassVar[bool] = True
    threshold: float = 5e-4

    def distance(self, refinement: Refinement) -> torch.Tensor:
        return _kl_since_last_tick(refinement)


@register_exit_criterion
@dataclass
class MinPKLCriterion(DistanceCriterion):
    """KL(q_before || q) < threshold, in nats, where q is softmax(logits) on the likely tokens alone, renormalised.

    A token is likely when p >= min_p * max p in this tick or in the last: by one tick alone, a token that has
    just lost all its probability would go unseen. (Huginn's published "minp-kl" gives the unlikely ones a constant
    instead of dropping them.) Cost: as `kl`, and a pass more.

    Args:
        threshold: 0 or more.
        min_p: between 0 (the same as `kl`) and 1.
    """

    name: ClassVar[str] = "min_p_kl"
    needs_logits: ClassVar[bool] = True
    threshold: float = 1e-5
    min_p: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_number("min_p", self.min_p, 1.0)

    def _likely(self, log_probs: torch.Tensor) -> torch.Tensor:
        p = log_probs.exp()
        return p >= self.min_p * p.amax(-1, keepdim=True)

    def _divergence(self, before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
        unlikely = ~(self._likely(before) | self._likely(now))
        return _kl_divergence(*(p.masked_fill(unlikely, -math.inf).log_softmax(-1) for p in (before, now)))

    def distance(self, refinement: Refinement) -> torch.Tensor:
        return _kl_since_last_tick(refinement, self._divergence)


def _streak(refinement: Refinement, key: str, tokens: torch.Tensor) -> torch.Tensor:
    """For how many ticks in a row each position's token has been what it was a tick before; int64 [batch, width]."""
    # Nothing is chosen from logits that are NaN or +inf. amax passes both on, and lets a token masked with -inf be.
    tokens = tokens.masked_fill(~refinement.logits.amax(-1).isfinite().to(tokens.device), -1)
    before, streak = refinement.recall(f"{key}.token"), refinement.recall(f"{key}.streak")
    if before is None:
        streak = torch.zeros_like(tokens)
    else:
        same = (tokens == before) & (tokens >= 0) & ~refinement.fresh.to(tokens.device)
        streak = torch.where(same, streak + 1, 0)
    refinement.remember(f"{key}.token", tokens)
    refinement.remember(f"{key}.streak", streak)
    return streak


@register_exit_criterion
@dataclass
class TokenStabilityCriterion(ExitCriterion):
    """The chosen token has been the same for `patience` ticks in a row after its first.

    The token that would be committed: after the logits processors and, when sampling, with the position's own Gumbel
    noise. `argmax_stability` looks at the model's raw logits. Cost: the readout; remembers two integers a position.

    Args:
        patience: ticks, 1 or more.
    """

    name: ClassVar[str] = "token_stability"
    needs_logits: ClassVar[bool] = True
    patience: int = 2

    def __post_init__(self):
        check_integer("patience", self.patience, 1)

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        return _streak(refinement, "token_stability", refinement.predictions) >= self.patience


@register_exit_criterion
@dataclass
class ArgmaxStabilityCriterion(ExitCriterion):
    """argmax(logits) has been the same for `patience` ticks in a row after its first, and p_1 - p_2 > margin.

    p_1 and p_2 are the two highest probabilities of softmax(logits) now. These are the model's raw logits, before
    processors and sampling; `token_stability` looks at the token they choose. Huginn's published "argmax-stability"
    waits for 5 recurrences with no margin; a tick is `inner_recurrence` of them. Cost: the readout, one softmax and a
    top-2; remembers two integers a position.

    Args:
        patience: ticks, 1 or more.
        margin: between 0 and 1.
    """

    name: ClassVar[str] = "argmax_stability"
    needs_logits: ClassVar[bool] = True
    patience: int = 2
    margin: float = 0.1

    def __post_init__(self):
        check_integer("patience", self.patience, 1)
        check_number("margin", self.margin, 1.0)

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        streak = _streak(refinement, "argmax_stability", refinement.logits.argmax(-1))
        first, second = refinement.logits.float().softmax(-1).topk(2, dim=-1).values.unbind(-1)
        return (streak >= self.patience) & (first - second > self.margin)


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

    def check_model(self, model: RecurrentDepthInterface) -> None:
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
    def needs_logits(self) -> bool:
        return any(criterion.needs_logits for criterion in self.criteria)

    def __call__(self, refinement: Refinement) -> torch.Tensor:
        verdicts = [criterion(refinement) for criterion in self.criteria]
        refinement.exit_values = None  # the last one's would pass for the list's
        verdicts = torch.stack([verdict.to(verdicts[0].device) for verdict in verdicts])
        return verdicts.any(0) if self.mode == "any" else verdicts.all(0)

    def check_model(self, model: RecurrentDepthInterface) -> None:
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
        criterion = ExitCriterionList([exit_criterion(one) for one in criteria], mode)
    else:
        criterion = EXIT_CRITERIA.build(spec)
    if threshold is None:
        return criterion
    known = dataclasses.fields(criterion) if dataclasses.is_dataclass(criterion) else ()
    if not any(field.name == "threshold" for field in known):
        raise ValueError(
            f"exit_threshold={threshold} has no place in {type(criterion).__name__}, which has no threshold: "
            "leave it out, or set the parameters of each criterion in its dict."
        )
    return dataclasses.replace(criterion, threshold=threshold)

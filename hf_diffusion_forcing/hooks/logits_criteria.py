"""Exit criteria that read the logits, or the tokens chosen from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..settings.validation import check_integer, check_number
from .exit_criterion import DistanceCriterion, ExitCriterion, register_exit_criterion, since_last_tick
from .refinement import Refinement


@register_exit_criterion
@dataclass
class EntropyCriterion(DistanceCriterion):
    """|H - H_before| < threshold, in nats, with H = -sum p log p of softmax(logits) in this tick and the last.

    The change of the entropy ("entropy-diff" in Huginn's published code), not the entropy itself: a position may have
    converged and still be unsure. Cost: the readout and one softmax; remembers one number per position.
    """

    name: ClassVar[str] = "entropy"
    needs_logits: ClassVar[bool] = True
    threshold: float = 1e-3

    def distance(self, refinement: Refinement) -> torch.Tensor:
        # entr(0) is 0: a token whose logit is -inf adds nothing.
        entropy = torch.special.entr(refinement.logits.float().softmax(-1)).sum(-1)
        return since_last_tick(refinement, "entropy.entropy", entropy, lambda before, now: (now - before).abs())


def kl_divergence(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """KL(p_before || p) in nats, [...], from log-probabilities [..., vocabulary]."""
    p = before.exp()
    terms = torch.where(p == 0, 0.0, p * (before - now))  # 0 * -inf would be NaN
    return terms.sum(-1).clamp_min(0)  # rounding may take a divergence below 0


def _kl_since_last_tick(refinement: Refinement, divergence=kl_divergence) -> torch.Tensor:
    # All criteria that compare distributions share this key, because they remember the same tensor.
    return since_last_tick(refinement, "kl.log_probs", refinement.logits.float().log_softmax(-1), divergence)


@register_exit_criterion
@dataclass
class KLCriterion(DistanceCriterion):
    """KL(p_before || p) < threshold, in nats, between softmax(logits) of the last tick and this one.

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
    """KL(q_before || q) < threshold, in nats, where q is softmax(logits) renormalised over the likely tokens.

    A token is likely if p >= min_p * max p in this tick or the last; with one tick only, a token that has just lost
    its probability would be missed. (Huginn's published "minp-kl" gives unlikely tokens a constant instead of dropping
    them.) Cost: that of `kl`, plus another pass over the vocabulary.

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
        return kl_divergence(*(p.masked_fill(unlikely, -math.inf).log_softmax(-1) for p in (before, now)))

    def distance(self, refinement: Refinement) -> torch.Tensor:
        return _kl_since_last_tick(refinement, self._divergence)


def _streak(refinement: Refinement, key: str, tokens: torch.Tensor) -> torch.Tensor:
    """For how many ticks in a row each position's token has not changed; int64 [batch, width]."""
    # A token chosen from NaN or +inf logits does not count. amax propagates both, but ignores tokens masked with -inf.
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
    """The chosen token has stayed the same for `patience` ticks after its first.

    This is the token that would be committed: chosen after the logits processors and, when sampling, with the
    position's Gumbel noise. `argmax_stability` reads the model's raw logits instead. Cost: the readout; remembers two
    integers per position.

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
    """argmax(logits) has stayed the same for `patience` ticks after its first, and p_1 - p_2 > margin.

    p_1 and p_2 are the two highest probabilities of the current softmax(logits): the model's raw logits, before
    processors and sampling. `token_stability` uses the chosen token instead. Huginn's published "argmax-stability"
    waits for 5 recurrences with no margin; a tick has `inner_recurrence` of them. Cost: the readout, one softmax and
    a top-2; remembers two integers per position.

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

"""Chooses an exit threshold whose share of differing tokens is bounded, by exact binomial tests on given texts.

Learn-then-Test (Angelopoulos et al., arXiv 2110.01052) with fixed-sequence testing: the thresholds are tested in an
order that does not depend on the texts, from the strictest to the loosest, and the last one before the first failure is
chosen. Each test has the full error level, and all of them together too: with the stated confidence, the chosen
threshold's true share is at most epsilon. The tests take tokens as independent draws of the texts' distribution.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from tqdm import tqdm

from ..hooks.exit_criterion import DistanceCriterion, exit_criterion
from ..hooks.learned_criterion import LearnedCriterion
from ..settings.generation_config import RecurrentDepthGenerationConfig
from ..settings.registry import HookSpec
from ..settings.sampler_config import sampler_config_class
from ..settings.validation import check_number
from .inspection import inspect_prompts, inspect_recurrences
from .recurrence_insight import RecurrenceInsight
from .stored_settings import save_with_settings

STEPS_PER_DECADE, DECADES_BELOW, DECADES_ABOVE = 12, 4, 4
"""Of the default thresholds, around the criterion's own."""


def upper_bound(differing: int, count: int, confidence: float) -> float:
    """The one-sided Clopper-Pearson bound: a share that is exceeded with a probability of at most 1 - confidence.

    Args:
        differing, count: observed in `count` independent draws, 1 or more.

    Raises:
        ImportError: scipy is not installed.
    """
    try:
        from scipy.stats import beta
    except ImportError as error:
        raise ImportError(f'Calibration needs scipy ({error}): pip install "hf-diffusion-forcing[eval]"') from error
    return 1.0 if differing == count else float(beta.ppf(confidence, differing + 1, count - differing))


def fewest_tokens(epsilon: float, confidence: float) -> int:
    """The fewest tokens that can show a share of at most epsilon: even if none differs, fewer leave it open."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - epsilon))


@dataclass(frozen=True)
class TestedThreshold:
    """A threshold and what the texts say of it.

    Attributes:
        threshold: the threshold.
        differing: tokens whose readout at the exit differs from that at full depth.
        upper: the upper bound on their share.
        recurrences: mean recurrences after which a position exits.
        holds: whether the bound is at most epsilon.
    """

    __test__ = False  # not a test of pytest
    threshold: float
    differing: int
    upper: float
    recurrences: float
    holds: bool


@dataclass(frozen=True)
class Calibration:
    """The result of `calibrate`.

    Attributes:
        criterion: the exit criterion as a dict, with the chosen threshold if there is one.
        threshold: the loosest threshold that holds; None if not even the strictest does.
        epsilon, confidence: what was asked for.
        num_steps: full depth.
        tokens: tokens that were compared.
        tested: the thresholds that were tested, strictest first; all but the last hold, unless all do.
    """

    criterion: dict[str, Any]
    threshold: float | None
    epsilon: float
    confidence: float
    num_steps: int
    tokens: int
    tested: list[TestedThreshold]

    @property
    def chosen(self) -> TestedThreshold | None:
        """What is known of the chosen threshold."""
        return next((each for each in self.tested if each.threshold == self.threshold), None)

    @property
    def outcome(self) -> str:
        """The result in a sentence."""
        name = self.criterion["name"]
        if self.chosen is None:
            first = self.tested[0]
            return (
                f"No threshold of {name} holds: at {first.threshold:.2g}, {first.differing} of {self.tokens} tokens "
                f"differ. Use more texts, or allow a larger epsilon than {self.epsilon:g}."
            )
        return (
            f"{name} with exit_threshold={self.threshold:.3g}: {self.chosen.differing} of {self.tokens} tokens differ "
            f"from {self.num_steps} recurrences; at most {self.chosen.upper:.2%} of all do, with {self.confidence:.0%} "
            f"confidence. A token exits after {self.chosen.recurrences:.2f} recurrences in the mean."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self) | {"outcome": self.outcome}

    def save(self, folder: str | os.PathLike, model, tokenizer, sampler: str | None = None) -> None:
        """Save a checkpoint whose sampler has this criterion and threshold by default.

        Args:
            folder: the model's own (only `generation_config.json` is rewritten), or a new one for the whole checkpoint.
            sampler: the sampler; that of the model's generation config when None, whose other settings are kept.

        Raises:
            ValueError: no threshold holds, the sampler has no exit criterion, or the folder holds something else.
        """
        if self.threshold is None:
            raise ValueError(self.outcome)
        save_with_settings(folder, model, tokenizer, settings_with(model, self.criterion, sampler))


def settings_with(model, criterion: dict[str, Any], sampler: str | None) -> dict[str, Any]:
    """A model's stored sampler settings with another exit criterion.

    Raises:
        ValueError: there is no sampler, or it has no exit criterion.
    """
    stored, preset, config = RecurrentDepthGenerationConfig.of(model.generation_config).stored()
    if sampler is not None and sampler != stored:
        stored, preset, config = sampler, None, {}
    if not stored:
        raise ValueError("The model's generation config names no sampler: pass sampler= (--sampler) to save one.")
    if "exit_criterion" not in sampler_config_class(stored).fields():
        raise ValueError(f"sampler={stored!r} has no exit criterion: use 'adaptive' or 'diffusion_forcing'.")
    others = {name: value for name, value in config.items() if name not in ("exit_criterion", "exit_threshold")}
    settings = {"sampler": stored, "sampler_config": others | {"exit_criterion": criterion}}
    return settings if preset is None else settings | {"sampler_preset": preset}


def calibrate(
    model,
    texts: Sequence[torch.Tensor],
    criterion: HookSpec = "settling",
    epsilon: float = 0.01,
    confidence: float = 0.95,
    thresholds: Sequence[float] | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Choose the loosest threshold of an exit criterion whose share of differing tokens is at most epsilon.

    A token differs if the likeliest token at its exit is not the one at full depth. The texts are given, and all
    positions are refined together, as `inspect_recurrences` does: in `generate()`, tokens exit at different depths and
    later ones read the keys and values of shallow exits, so check the chosen threshold there too.

    Args:
        model: a recurrent-depth model.
        texts: int64 [1, length] each, not used to choose anything else.
        criterion: one that compares a distance with a threshold.
        epsilon: share of tokens that may differ, between 0 and 1.
        confidence: probability that the true share is at most epsilon, between 0 and 1.
        thresholds: increasing, chosen without a look at the texts; when None, 12 a decade from 1e-4 to 10,000 times the
            criterion's own.
        num_steps: full depth; `mean_recurrence` when None.
        seed: seed of the initial states; text i has seed + i.
        progress: show a progress bar.

    Raises:
        TypeError, ValueError: an argument is wrong, or the texts have too few tokens to show epsilon.
        ImportError: scipy is not installed.
    """
    rule, sequence = _checked(criterion, epsilon, confidence, thresholds)
    if not texts:
        raise ValueError("texts is empty: pass int64 [1, length] tensors.")
    _check_count(sum(ids.numel() for ids in texts), epsilon, confidence)
    insights = [
        inspect_recurrences(model, ids, num_steps=num_steps, exit_criterion=rule, exit_threshold=None, seed=seed + row)
        for row, ids in enumerate(tqdm(texts, desc="texts", disable=not progress))
    ]
    return _chosen(RecurrenceInsight.joined(insights), rule, sequence, epsilon, confidence)


def calibrate_prompts(
    model,
    tokenizer,
    prompts: Sequence[str],
    criterion: HookSpec = "settling",
    epsilon: float = 0.01,
    confidence: float = 0.95,
    thresholds: Sequence[float] | None = None,
    max_new_tokens: int = 64,
    **settings: Any,
) -> Calibration:
    """`calibrate` on what the model itself writes after prompts at full depth, without the prompts' own tokens.

    Args:
        tokenizer: the model's left-padding tokenizer.
        prompts: texts like those to be decoded.
        max_new_tokens: tokens to write after each, 1 or more.
        settings: of `inspect_prompts`: `num_steps`, `batch_size`, `seed`, `progress`.

    Raises:
        TypeError, ValueError, ImportError: as `calibrate`.
    """
    rule, sequence = _checked(criterion, epsilon, confidence, thresholds)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1: the model's own tokens are compared.")
    _check_count(len(prompts) * max_new_tokens, epsilon, confidence)
    insight = inspect_prompts(
        model, tokenizer, prompts, max_new_tokens, exit_criterion=rule, exit_threshold=None, **settings
    )
    _check_count(int(insight.is_new.sum()), epsilon, confidence)
    return _chosen(insight, rule, sequence, epsilon, confidence)


def check_confidence(epsilon: float, confidence: float) -> None:
    """ValueError unless both are between 0 and 1; TypeError for no numbers."""
    for name, value in (("epsilon", epsilon), ("confidence", confidence)):
        check_number(name, value, 1.0)
        if not 0 < value < 1:
            raise ValueError(f"{name}={value} must be between 0 and 1, and neither of them.")


def _checked(
    spec: HookSpec, epsilon: float, confidence: float, thresholds: Sequence[float] | None
) -> tuple[DistanceCriterion, list[float]]:
    """The criterion, and the thresholds in the order of the tests."""
    check_confidence(epsilon, confidence)
    criterion = exit_criterion(spec)
    if not isinstance(criterion, DistanceCriterion):
        raise ValueError(
            f"criterion={spec!r} does not compare a distance with a threshold, so there is nothing to calibrate: use "
            "'settling', 'latent_difference', 'kl' or another that does."
        )
    if criterion.threshold is None:
        criterion = replace(criterion, threshold=LearnedCriterion.usual_threshold)
    if thresholds is None:
        powers = range(-DECADES_BELOW * STEPS_PER_DECADE, DECADES_ABOVE * STEPS_PER_DECADE + 1)
        thresholds = [criterion.threshold * 10 ** (power / STEPS_PER_DECADE) for power in powers]
    for value in thresholds:
        check_number("thresholds", value)
    if not len(thresholds) or any(a >= b for a, b in pairwise(thresholds)):
        raise ValueError(f"thresholds={list(thresholds)} must be one or more increasing numbers, the strictest first.")
    return criterion, list(thresholds)


def _check_count(tokens: int, epsilon: float, confidence: float) -> None:
    needed = fewest_tokens(epsilon, confidence)
    if tokens < needed:
        raise ValueError(
            f"The texts have {tokens} tokens; to show epsilon={epsilon:g} with confidence={confidence:g}, at least "
            f"{needed} are needed even if none differs: use more texts, or a larger epsilon."
        )


def _chosen(
    insight: RecurrenceInsight, criterion: DistanceCriterion, thresholds: list[float], epsilon: float, confidence: float
) -> Calibration:
    """Test the thresholds in order, up to the first that fails."""
    compared = insight.is_new if insight.is_new.any() else torch.ones_like(insight.is_new)
    values = insight.exit_values[:, compared]
    differs = (insight.readouts != insight.readouts[-1])[:, compared]
    count, last = values.shape[1], torch.arange(len(values))[:, None] == len(values) - 1
    tested: list[TestedThreshold] = []
    for threshold in thresholds:
        exits = ((values < threshold) | last).int().argmax(0)
        differing = int(differs.gather(0, exits[None]).sum())
        upper = upper_bound(differing, count, confidence)
        recurrences = exits.float().mean().item() + 1
        tested.append(TestedThreshold(threshold, differing, upper, recurrences, upper <= epsilon))
        if upper > epsilon:
            break
    holding = [each.threshold for each in tested if each.holds]
    described = criterion.to_dict() | ({"threshold": holding[-1]} if holding else {})
    best = holding[-1] if holding else None
    return Calibration(described, best, epsilon, confidence, insight.num_steps, count, tested)

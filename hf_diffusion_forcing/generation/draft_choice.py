"""How many recurrences drafts get, and how many guesses enter behind them, for the least estimated time per token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ..cache import Placement
from ..models.interface import RecurrentDepthInterface
from .cost_curve import CostCurve
from .pace import Correction
from .prompt import Prompt
from .row import Row
from .wave_choice import AS_MEASURED

LOOKED_UP = 32
"""Positions at the end of a prompt for which guesses are asked."""


@dataclass(frozen=True)
class Guessing:
    """How guesses behind a draft fare.

    Attributes:
        coverage: the share of drafts behind which anything is guessed.
        accuracy: the share of guesses that are right if those before them are.
    """

    coverage: float = 0.0
    accuracy: float = 0.5


class PromptAgreement:
    """Measures, while the prompt is read, how often shallow readouts predict the same token as full-depth ones.

    Args:
        model: its coda reads out the states; the prompt's own pass overwrites the coda's keys and values.
        depths: the recurrences to compare.
        steps: the full depth.
    """

    def __init__(self, model: RecurrentDepthInterface, depths: Iterable[int], steps: int):
        self.model, self.depths, self.steps = model, sorted(set(depths)), steps
        self.count = 0
        self.predicted: dict[int, torch.Tensor] = {}

    def __call__(self, states: torch.Tensor, before: torch.Tensor, at: Placement, prompt: Prompt) -> None:
        """Called after a recurrence: states [1, n, channels] after and before it."""
        self.count += 1
        if self.count in (*self.depths, self.steps):
            heads = self.model.decoding_heads
            if heads is not None and self.count < self.steps:
                states = heads.corrected(states, self.count)
            logits = self.model.decode(states, at, logits_to_keep=prompt.watched())
            self.predicted[self.count] = logits.argmax(-1)

    @property
    def shares(self) -> dict[int, float]:
        """The share of equal predictions, by depth, as if half a position more were equal and half a one were not: no
        number of positions shows that all are."""
        truth = self.predicted[self.steps]
        count = truth.numel()
        return {depth: (int((self.predicted[depth] == truth).sum()) + 0.5) / (count + 1) for depth in self.depths}

    def guessing(self, rows: list[Row]) -> Guessing:
        """How guesses of the token after a position of the prompt would have fared, against its full-depth prediction.

        Asks at most `LOOKED_UP` positions of each row, and tells the rows' `guesses` how often each source was right.
        """
        asked, made, right = 0, 0, 0
        for row, said in zip(rows, self.predicted[self.steps].view(len(rows), -1).tolist(), strict=True):
            before = len(row.ids) - len(said) + 1
            for place, token in list(enumerate(said, start=before))[-LOOKED_UP:]:
                guess = row.guesses.propose(row.ids[:place], 1)[:1] if place > 0 else []
                asked += 1
                for source, guessed in guess:
                    made, right = made + 1, right + (guessed == token)
                    row.guesses.rate(source, guessed == token)
        return Guessing(made / asked if asked else 0.0, (right + 1) / (made + 2))


def lost_ticks(shares: Mapping[int, float], steps: int, depth: int, second: int) -> float:
    """Ticks per token in which a row waits because a draft was wrong.

    A wrong first draft costs the ticks until the readout that finds it: the second draft, or the full depth if the
    second is wrong, too.

    Args:
        shares: of right drafts, by depth.
        steps, depth, second: r, k and the depth of the second draft, or 0.
    """
    right = shares[depth]
    later = max(right, shares[second]) if second else right
    return (1 - later) * (steps / depth - 1) + (later - right) * (second / depth - 1)


def lossless_seconds(
    curve: CostCurve,
    chances: Sequence[float],
    steps: int,
    depth: int,
    lost: float = 0.0,
    coverage: float = 1.0,
    correction: Correction = AS_MEASURED,
    share: float = 1.0,
) -> float:
    """The estimated seconds per token of the lossless wavefront, per row.

    A tick adds one token, and each guess with the chance that it and all before it are right. A token stays for r / k
    ticks, a wrong guess for one. The coda reads new positions, and tokens that are committed.

    Args:
        chances: of each guess that enters with a draft, that it is right if those before it are.
        steps, depth: r and k.
        lost: see `lost_ticks`.
        coverage: the share of ticks in which there are guesses.
        correction: what ticks take beyond the curve's estimate.
        share: live rows over those that the curve was measured for.
    """
    chance, right = 1.0, 0.0
    for each in chances:
        chance *= each
        right += chance
    tokens, guesses = 1 + coverage * right, coverage * len(chances)
    width = steps / depth * tokens + guesses + 1 - tokens
    seconds = correction(curve.seconds_per_tick(share * width, depth, ends=share * (tokens + guesses + 1)))
    return (1 / tokens + lost) * seconds


def choose_guesses(curve: CostCurve, chances: Sequence[float], steps: int, depth: int, lost: float = 0.0) -> int:
    """How many guesses should enter behind a draft, for the least estimated time per token.

    Args:
        chances: of each guess, that it is right if those before it are.
        steps, depth, lost: as in `lossless_seconds`.
    """
    return min(range(len(chances) + 1), key=lambda count: lossless_seconds(curve, chances[:count], steps, depth, lost))

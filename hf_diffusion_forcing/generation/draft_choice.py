"""`draft_depth="auto"`: chooses the draft depth with the least estimated time per token."""

import torch

from ..cache import Placement
from ..models.interface import RecurrentDepthInterface
from .cost_curve import CostCurve
from .prompt import Prompt


class PromptAgreement:
    """Measures, while the prompt is read, how often shallow readouts predict the same token as full-depth ones.

    Args:
        model: its coda reads out the states; the prompt's own pass overwrites the coda's keys and values.
        depths: the recurrences to compare.
        steps: the full depth.
    """

    def __init__(self, model: RecurrentDepthInterface, depths: list[int], steps: int):
        self.model, self.depths, self.steps = model, depths, steps
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
        """The share of equal predictions, by depth."""
        truth = self.predicted[self.steps]
        return {depth: float((self.predicted[depth] == truth).float().mean()) for depth in self.depths}


def choose_draft_depth(curve: CostCurve, shares: dict[int, float], steps: int) -> int:
    """The draft depth k with the least estimated time per token.

    A full wave has r / k positions, and a tick commits one token; after a wrong draft the wave must fill again. With
    a share a of right drafts, a token takes 1 + (1 - a) (r / k - 1) ticks.

    Args:
        shares: a, by k.
        steps: r.
    """

    def seconds(depth: int) -> float:
        width = steps // depth
        ticks = 1 + (1 - shares[depth]) * (width - 1)
        return ticks * curve.seconds_per_tick(width, depth, ends=2)

    return min(shares, key=seconds)


def choose_guesses(curve: CostCurve, chances: list[float], steps: int, depth: int) -> int:
    """How many guesses should enter behind a draft, for the least estimated time per token.

    A tick adds one token, and each guess with the chance that it and all before it are right. A token stays for r / k
    ticks, a wrong guess for one.

    Args:
        chances: of each guess, that it is right if those before it are.
        steps, depth: r and k.
    """
    tokens = chance = 1.0
    best, least = 0, curve.seconds_per_tick(steps / depth, depth, ends=2)
    for count, each in enumerate(chances, start=1):
        chance *= each
        tokens += chance
        width = steps / depth * tokens + count + 1 - tokens
        seconds = curve.seconds_per_tick(width, depth, ends=tokens + count + 1) / tokens
        if seconds < least:
            best, least = count, seconds
    return best

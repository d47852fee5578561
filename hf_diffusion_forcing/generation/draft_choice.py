"""`draft_depth="auto"`: the draft depth that should cost the least time a token."""

import torch

from ..cache import Placement
from ..models.interface import RecurrentDepthInterface
from .cost_curve import CostCurve
from .prompt import Prompt


class PromptAgreement:
    """How often readouts after few recurrences predict what the last one does, seen while the prompt is read.

    Args:
        model: whose coda reads the states out; its keys and values are written again by the prompt's own pass.
        depths: the recurrences to look at.
        steps: recurrences of a pass.
    """

    def __init__(self, model: RecurrentDepthInterface, depths: list[int], steps: int):
        self.model, self.depths, self.steps = model, depths, steps
        self.count = 0
        self.predicted: dict[int, torch.Tensor] = {}

    def __call__(self, states: torch.Tensor, before: torch.Tensor, at: Placement, prompt: Prompt) -> None:
        """After a recurrence: states [1, n, channels], and those before it."""
        self.count += 1
        if self.count in (*self.depths, self.steps):
            logits = self.model.decode(states, at, logits_to_keep=prompt.watched())
            self.predicted[self.count] = logits.argmax(-1)

    @property
    def shares(self) -> dict[int, float]:
        """By depth, the share of equal predictions."""
        truth = self.predicted[self.steps]
        return {depth: float((self.predicted[depth] == truth).float().mean()) for depth in self.depths}


def choose_draft_depth(curve: CostCurve, shares: dict[int, float], steps: int) -> int:
    """The draft depth k that should cost the least time a token.

    A full wave has r / k positions and a tick commits one token; a wrong draft costs the ticks until the wave is full
    again. So a token takes 1 + (1 - a) (r / k - 1) ticks, with a share a of right drafts.

    Args:
        shares: a, by k.
        steps: r.
    """

    def seconds(depth: int) -> float:
        width = steps // depth
        ticks = 1 + (1 - shares[depth]) * (width - 1)
        return ticks * curve.seconds_per_tick(width, depth, ends=2)

    return min(shares, key=seconds)

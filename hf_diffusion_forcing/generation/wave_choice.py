"""`wavefront="auto"`: chooses the wavefront and inner recurrence with the least estimated time per token."""

import torch

from ..cache import Placement
from ..hooks.latent_criteria import latent_difference
from .cost_curve import CostCurve
from .pace import Correction
from .prompt import Prompt

AS_MEASURED = Correction()

INNER_RECURRENCES = (1, 2, 4, 8)
WAVEFRONTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class PromptDepth:
    """Measures, while the prompt is read, how many recurrences its end needed.

    Args:
        threshold: a position needs more recurrences while its `latent_difference` is at least this.
    """

    def __init__(self, threshold: float = 0.03):
        self.threshold = threshold
        self.count = 0
        self.needed: torch.Tensor | None = None

    def __call__(self, states: torch.Tensor, before: torch.Tensor, at: Placement, prompt: Prompt) -> None:
        """Called after a recurrence: states [1, n, channels] after and before it."""
        watched = prompt.watched()
        moved = latent_difference(states[:, watched], before[:, watched])
        if self.needed is None:
            self.needed = torch.ones_like(moved)
        self.count += 1
        self.needed = torch.where(moved < self.threshold, self.needed, self.count + 1)

    @property
    def recurrences(self) -> float:
        """The median over positions."""
        return float(self.needed.flatten().float().median())


def steady_wave(stay: float, wavefront: int) -> tuple[float, float]:
    """Ticks per token, and positions in the wave, in the middle of a text.

    A tick commits at most `wavefront / stay` tokens, and at most one (`headway`). Where the two bounds are close it
    commits fewer than either; the curve is fitted to texts of the trained checkpoints (docs/theory.md). Converged
    positions wait for those on their left, so a wave with room holds somewhat more than `stay` positions.

    Args:
        stay: ticks a position needs, 1 or more.
    """
    ticks = (1 + (stay / wavefront) ** 3) ** (1 / 3)
    positions = (wavefront**-3 + (1.2 * stay) ** -3) ** (-1 / 3)
    return ticks, max(positions, 1.0)


def wave_seconds(
    curve: CostCurve,
    recurrences: float,
    wavefront: int,
    inner_recurrence: int,
    correction: Correction = AS_MEASURED,
    share: float = 1.0,
    lost: float = 0.0,
) -> float:
    """The estimated seconds per token of a row.

    A position that needs d recurrences needs d / r' ticks; see `steady_wave`. Drafts that turn out wrong cost ticks on
    top. The deeper a draft is when it is first read out, the more often it is right: on texts of the two trained
    checkpoints, r' recurrences lose about r'^2 times fewer ticks than one.

    Args:
        recurrences: d.
        correction: what the curve leaves out.
        share: of the rows that the curve was measured for, those that are left.
        lost: ticks per token that wrong drafts cost with r' = 1.
    """
    ticks, positions = steady_wave(max(recurrences / inner_recurrence, 1), wavefront)
    ticks += lost / inner_recurrence**2
    return ticks * correction(curve.seconds_per_tick(share * positions, inner_recurrence))


def fronts_seconds(
    curve: CostCurve,
    recurrences: float,
    rows: int,
    correction: Correction = AS_MEASURED,
    share: float = 1.0,
    reads_out: bool = False,
) -> float:
    """The estimated seconds per token of a row where ticks refine the fronts alone, one recurrence each.

    Prelude and coda run in ticks where some row has a new token or exits. With d recurrences a token, that is a share
    of 1 - (1 - 1 / d)^rows.

    Args:
        recurrences, correction, share: as in `wave_seconds`.
        rows: how many there are.
        reads_out: whether every tick reads out, because the exit criterion reads logits.
    """
    exits = 1.0 if reads_out else 1 - (1 - 1 / max(recurrences, 1)) ** rows
    core = curve.seconds_per_tick(share, 1) - curve.seconds_per_tick(share, 0)
    return max(recurrences, 1) * correction(core + exits * curve.seconds_per_tick(share, 0))


def waves(recurrences: float, budget: int, inner_recurrence: int | None = None) -> list[tuple[int, int]]:
    """The wavefronts and inner recurrences to choose from.

    A wavefront of more than about twice as many positions as the ticks that one needs fills up only where a text does
    not converge, which gains no speed.

    Args:
        recurrences: how many a position needs.
        budget: the most recurrences of a position, and an upper bound on r'.
        inner_recurrence: r', if it is given.
    """
    candidates = [r for r in INNER_RECURRENCES if r <= budget] if inner_recurrence is None else [inner_recurrence]
    return [(w, r) for r in candidates for w in WAVEFRONTS if w <= 2.2 * max(recurrences / r, 1)]

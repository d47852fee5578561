"""One position of a wave."""

from __future__ import annotations

from dataclasses import dataclass, field

NEW = -1
"""The cell of a position that has no state yet."""


@dataclass(slots=True, eq=False)
class Position:
    """One position of a row's wave.

    Attributes:
        token: its input id. The front's is committed; the others are drafts.
        steps: recurrences since its token last changed.
        cell: index of its state in the last tick's tensors; `NEW` while it has none.
        proposals: its drafts of the next token, by readout depth (lossless decoding).
        guess: a guess of the next token, made before any readout, with the name of its source.
        ahead: what the model's extra-token head guesses to follow (lossless decoding).
    """

    token: int
    steps: int = 0
    cell: int = NEW
    proposals: dict[int, int] = field(default_factory=dict)
    guess: tuple[str, int] | None = None
    ahead: tuple[int, ...] = ()

"""Guesses of the tokens after a row's newest draft."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import takewhile

from ..hooks.draft_source import DraftSource
from .position import Position

DROPPED = "dropped_drafts"
"""The name, in statistics, of guesses that were drafts before: a wrong draft drops all later ones, though some of them
may be right."""

EXTRA = "extra_tokens"
"""The name, in statistics, of guesses by the model's own extra-token head."""

MEMORY = 16
"""How many of the latest guesses the rates and leads look back to, roughly."""


class Guesses:
    """Guesses of one row: the drafts it has dropped, those of the model's extra-token head, and those of its source.

    Those that were right more often go first, and the others continue. The head continues nothing: it knows only what
    follows a draft.

    Args:
        source: the draft source; None for dropped drafts alone.
        vocabulary: how many ids the model has.
        ends: ids that end a text; no position follows one.
        has_extra: whether the model has an extra-token head.

    Attributes:
        rates: the share of right guesses, by source, over the last ones.
        leads: by source and readout depth, how much more often the guess was right than the readout where they
            disagreed; the past counts less and less.
    """

    def __init__(self, source: DraftSource | None, vocabulary: int, ends: set[int], has_extra: bool = False):
        self.source, self.vocabulary, self.ends = source, vocabulary, ends
        self.dropped: dict[int, int] = {}
        """The dropped drafts, by their place in the row's ids."""
        self.leads: dict[tuple[str, int], float] = {}
        self.rates: dict[str, float] = ({EXTRA: 0.5} if has_extra else {}) | {DROPPED: 0.5}
        if source is not None:
            self.rates[getattr(source, "name", type(source).__name__)] = 0.5

    def keep(self, start: int, tokens: list[int]) -> None:
        """Keep drafts that were dropped; they stood at `start`, `start + 1`, ... of the row's ids."""
        further = {place: token for place, token in self.dropped.items() if place >= start + len(tokens)}
        self.dropped = dict(enumerate(tokens, start)) | further

    def learn(self, position: Position, token: int) -> None:
        """Learn from a position's guess and drafts of the next token, now that it is committed."""
        if position.guess is None:
            return
        source, guessed = position.guess
        self.rate(source, guessed == token)
        for depth, drafted in position.proposals.items():
            if drafted != guessed:
                lead = self.leads.get((source, depth), 0.0) * (1 - 1 / MEMORY)
                self.leads[source, depth] = lead + (guessed == token) - (drafted == token)

    def rate(self, source: str, is_right: bool) -> None:
        """Count one guess of a source."""
        self.rates[source] += (is_right - self.rates[source]) / MEMORY

    def preferred(self, position: Position, drafted: int) -> int:
        """The token to follow a position that has just been read out as `drafted`: that one, or its guess.

        A guess wins if its source was right more often where it and a readout of this depth disagreed.
        """
        if position.guess is None:
            return drafted
        source, guessed = position.guess
        return guessed if self.leads.get((source, position.steps), 0.0) > 0 else drafted

    def propose(self, ids: list[int], count: int, ahead: Sequence[int] = ()) -> list[tuple[str, int]]:
        """Up to `count` tokens that may follow, each with the name of its source; none ends a text.

        Args:
            ids: the row's ids and drafts.
            ahead: what the extra-token head guesses to follow.

        Raises:
            TypeError, ValueError: the source returned something else than tokens of the vocabulary.
        """
        guessed: list[tuple[str, int]] = []
        for name in sorted(self.rates, key=self.rates.get, reverse=True):
            text, room = ids + [token for _, token in guessed], count - len(guessed)
            if name == EXTRA:
                tokens = [] if guessed else ahead[:room]
            else:
                ask = self._from_dropped if name == DROPPED else self._from_source
                tokens = ask(text, room) if room else []
            for token in tokens:
                if token in self.ends:
                    return guessed
                guessed.append((name, token))
        return guessed

    def _from_dropped(self, ids: list[int], count: int) -> list[int]:
        places = range(len(ids), len(ids) + count)
        return [self.dropped[place] for place in takewhile(self.dropped.__contains__, places)]

    def _from_source(self, ids: list[int], count: int) -> list[int]:
        proposed = self.source.propose(ids, count)
        if not isinstance(proposed, Iterable):
            raise TypeError(f"draft_source {self.source!r} returned {proposed!r}: return a list of token ids.")
        return [self._checked(token) for _, token in zip(range(count), proposed, strict=False)]

    def _checked(self, token: object) -> int:
        try:
            if isinstance(token, bool):
                raise TypeError
            number = operator.index(token)
        except TypeError:
            raise TypeError(
                f"draft_source {self.source!r} returned {token!r} among its tokens: every token must be an int."
            ) from None
        if not 0 <= number < self.vocabulary:
            raise ValueError(
                f"draft_source {self.source!r} returned the token {number}, but the vocabulary has ids from 0 to "
                f"{self.vocabulary - 1}: return only those."
            )
        return number

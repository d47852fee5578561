"""Draft sources guess tokens of a text before the model computes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from ..settings.registry import DRAFT_SOURCES
from ..settings.validation import check_integer


class DraftSource(ABC):
    """Guesses how a text goes on. In lossless decoding guesses never change the text, only its speed; in diffusion
    forcing they may change it as any draft may.

    Subclass it as a dataclass and pass an instance; `register_draft_source` gives it a name for settings. One instance
    serves all rows of a call. An exception that it raises ends the call.

    Attributes:
        name: its name in settings and statistics.
    """

    name: ClassVar[str]

    @abstractmethod
    def propose(self, ids: list[int], count: int) -> list[int]:
        """Up to `count` tokens that may follow `ids`; an empty list without a guess.

        Called in most ticks, on the host, so it should take far less time than a pass of the core.

        Args:
            ids: a row's prompt, its new tokens and its drafts; in lossless decoding with the prompt's left padding.
            count: the most tokens that are used, 1 or more; any beyond it are ignored.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which `draft_source` makes an equal source; TypeError for an unregistered class."""
        return DRAFT_SOURCES.to_dict(self)


def register_draft_source(source_class: type[DraftSource]) -> type[DraftSource]:
    """Class decorator: registers your source under its `name` for settings. Put it above `@dataclass`.

    Raises:
        TypeError: the class is not a dataclass, does not subclass `DraftSource`, or has no `name`.
        ValueError: the name belongs to another class.
    """
    return DRAFT_SOURCES.register(source_class)


def draft_source(spec: DraftSource | str | dict) -> DraftSource:
    """A draft source from settings.

    Args:
        spec: a name in `DRAFT_SOURCES`; a dict {"name": ..., **parameters}; or an instance, which is returned
            unchanged.

    Raises:
        TypeError: `spec` is none of these, or a parameter has the wrong type.
        ValueError: a name or parameter is unknown (suggests the nearest), or a value is out of range.
    """
    return DRAFT_SOURCES.build(spec)


@register_draft_source
@dataclass
class PromptLookup(DraftSource):
    """What followed the last place in the row's own text where its latest tokens stood before.

    The idea is prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding). transformers'
    `PromptLookupCandidateGenerator` takes the first such place instead of the last, and needs a few tensor operations
    for every length; this one searches strings.

    Args:
        max_ngram: the most latest tokens to look for.
        min_ngram: the fewest.

    Raises:
        TypeError, ValueError: one is not an int of 1 or more, or `min_ngram` is more than `max_ngram`.
    """

    name: ClassVar[str] = "prompt_lookup"

    max_ngram: int = 8
    min_ngram: int = 2

    def __post_init__(self):
        check_integer("min_ngram", self.min_ngram, 1)
        check_integer("max_ngram", self.max_ngram, self.min_ngram)

    def propose(self, ids: list[int], count: int) -> list[int]:
        # A character for each id: `rfind` is the fastest search of a list for a part of it.
        text = "".join(map(chr, ids))
        for length in range(min(self.max_ngram, len(ids) - 1), self.min_ngram - 1, -1):
            found = text.rfind(text[-length:], 0, -1)
            if found >= 0:
                return ids[found + length : found + length + count]
        return []

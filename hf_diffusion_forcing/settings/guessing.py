"""What the samplers share whose waves may gain several positions a tick."""

from dataclasses import dataclass

from .registry import DRAFT_SOURCES, Hook, HookSpec
from .sampler_config import SamplerConfig
from .validation import check_integer


@dataclass(kw_only=True)
class GuessingConfig(SamplerConfig):
    """Settings of the samplers whose waves may gain several positions a tick, the first behind a draft and the others
    behind guesses.

    Args:
        draft_tokens: the most positions that may enter in a tick (m): the newest draft and guesses of the tokens
            after it. 1 is no guesses. "auto", which only lossless decoding has, takes as many, up to 8, as are worth
            their time on this machine by how often a row's guesses were right.
        draft_source: guesses those tokens: "prompt_lookup" (from the row's own text), a dict
            {"name": ..., **parameters}, a `DraftSource`, or None. A model's own extra-token head guesses too; in
            lossless decoding, so do the drafts that a row has dropped.
    """

    draft_tokens: int | str = 1
    draft_source: HookSpec | None = "prompt_lookup"

    def validate(self) -> None:
        super().validate()
        self.check_draft_tokens()
        self.source()

    def check_draft_tokens(self) -> None:
        """Check the number of positions."""
        check_integer("draft_tokens", self.draft_tokens, 1)

    def source(self) -> Hook | None:
        """The `DraftSource` of these settings."""
        return None if self.draft_source is None else DRAFT_SOURCES.make(self.draft_source)

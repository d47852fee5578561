"""Settings of the lossless wavefront."""

from dataclasses import dataclass
from typing import ClassVar

from .guessing import GuessingConfig
from .lossless import LosslessConfig
from .validation import check_integer

AUTO_DRAFT_TOKENS = 8
"""The most positions that may enter in a tick with `draft_tokens="auto"`."""


@dataclass(kw_only=True)
class SpeculativeWavefrontConfig(LosslessConfig, GuessingConfig):
    """Settings of `sampler="speculative_wavefront"`: autoregression's text, drafted at shallow depth.

    Drafts never change the text: only `num_steps`, `state_scale`, `seed` and (by rounding) `exact` can.

    Args:
        draft_depth: recurrences after which a position drafts the next token, and recurrences of a tick; must divide
            `num_steps`. "auto" compares shallow predictions and guesses with full-depth ones on the prompt, times
            several widths on this machine, and chooses; it chooses again while decoding. None is the largest depth that
            keeps 16 positions in the wave, or 1.
        second_draft_depth: recurrences after which a position drafts the next token again; if the two drafts differ,
            the positions after it start over. A multiple of `draft_depth` below `num_steps`, or 0 for no second
            draft. None is four times `draft_depth` if that is below `num_steps`, otherwise 0.
    """

    sampler: ClassVar[str] = "speculative_wavefront"

    draft_depth: int | str | None = None
    second_draft_depth: int | None = None

    def validate(self) -> None:
        super().validate()
        if self.kv_sharing != "none":
            raise ValueError(
                f"kv_sharing={self.kv_sharing!r} is not possible with sampler={self.sampler!r}, which needs one KV "
                "entry per recurrence: leave it out (and a cache made with it), or use sampler='diffusion_forcing'."
            )
        if isinstance(self.draft_depth, str) and self.draft_depth != "auto":
            raise ValueError(f"draft_depth={self.draft_depth!r} is unknown: use 'auto' or a number of recurrences.")
        for name in ("draft_depth", "draft_tokens"):
            if getattr(self, name) == "auto" and self.compile:
                raise ValueError(
                    f"{name}='auto' is not possible with compile=True: it times passes that are not compiled. Pass "
                    f"{name}=, or leave compile out."
                )
        if self.draft_depth not in (None, "auto"):
            check_integer("draft_depth", self.draft_depth, 1)
        if self.second_draft_depth is not None:
            check_integer("second_draft_depth", self.second_draft_depth, 0)

    def check_draft_tokens(self) -> None:
        if isinstance(self.draft_tokens, str) and self.draft_tokens != "auto":
            raise ValueError(f"draft_tokens={self.draft_tokens!r} is unknown: use 'auto' or a number of positions.")
        if self.draft_tokens != "auto":
            super().check_draft_tokens()

    @property
    def most_draft_tokens(self) -> int:
        """The most positions that may enter in a tick."""
        return self.draft_tokens if isinstance(self.draft_tokens, int) else AUTO_DRAFT_TOKENS

    @property
    def draft_depths(self) -> list[int]:
        """Every draft depth that fits `num_steps` and `second_draft_depth`."""
        second = self.second_draft_depth
        return [
            depth
            for depth in range(1, self.num_steps)
            if self.num_steps % depth == 0 and (not second or (second % depth == 0 and second > depth))
        ]

    def second_depth(self, draft_depth: int | str) -> int:
        """`second_draft_depth`, filled in for a draft depth; 0 if there is no second draft."""
        if self.second_draft_depth is not None or not isinstance(draft_depth, int):
            return self.second_draft_depth or 0
        return 4 * draft_depth if 4 * draft_depth < self.num_steps else 0

    def check_depths(self) -> None:
        if self.num_steps is None:
            return
        if self.num_steps == 1:
            raise ValueError(
                f"num_steps=1 leaves no recurrence for drafts: use sampler='autoregressive' instead of "
                f"sampler={self.sampler!r}."
            )
        if self.second_draft_depth is not None and self.second_draft_depth >= self.num_steps:
            raise ValueError(
                f"second_draft_depth={self.second_draft_depth} must be less than num_steps={self.num_steps}."
            )
        fitting = self.draft_depths
        if not fitting or (isinstance(self.draft_depth, int) and self.draft_depth not in fitting):
            remedy = f"use {' or '.join(map(str, fitting))}" if fitting else "leave second_draft_depth out"
            raise ValueError(
                f"draft_depth={self.draft_depth!r} does not fit num_steps={self.num_steps} and "
                f"second_draft_depth={self.second_draft_depth}: it must divide both and be less than both; {remedy}."
            )

    def fill_depths(self, mean_recurrence: int) -> None:
        super().fill_depths(mean_recurrence)
        self.check_depths()  # raises if no draft depth fits
        if self.draft_depth is None:
            self.draft_depth = self.usual_draft_depth

    @property
    def usual_draft_depth(self) -> int:
        """The draft depth without a choice: the largest that keeps 16 positions in the wave, or 1."""
        widest = max(1, self.num_steps // 16)
        return max(depth for depth in self.draft_depths if depth <= widest)

    @property
    def widest(self) -> int:
        ticks = self.num_steps // self.draft_depth if isinstance(self.draft_depth, int) else self.num_steps
        return ticks * self.most_draft_tokens

    @property
    def follows_prompt(self) -> bool:
        return self.draft_depth == "auto"

"""What "auto" settings chose, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """One choice of settings by their estimated time.

    Attributes:
        tick: how many ticks of the call came before it; 0 for the choice made when the prompt was read.
        sampler: the sampler whose ticks are run: "diffusion_forcing", "adaptive" or "speculative_wavefront".
        settings: the settings chosen, by name.
        measured: what the choice rests on. `recurrences`: how many a position needs; `right_drafts`: the share of right
            drafts at the chosen depth; `tick_seconds` and `tokens_per_tick` (per row): of the ticks since the last
            choice.
        seconds_per_token: estimated, of a row: for what was chosen, and for the best of what was not.
    """

    tick: int
    sampler: str
    settings: dict[str, int]
    measured: dict[str, float]
    seconds_per_token: dict[str, float]

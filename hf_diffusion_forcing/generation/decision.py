"""What "auto" settings chose, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """One choice of settings by their estimated time.

    Attributes:
        tick: how many ticks of the call came before it; 0 for the choice made when the prompt was read.
        sampler: the sampler whose ticks are run: "diffusion_forcing" or "adaptive".
        settings: the settings chosen, by name.
        measured: what the choice rests on. `recurrences`: how many a position needs; `tick_seconds` and
            `tokens_per_tick` (per row): of the ticks since the last choice.
        seconds_per_token: estimated, per row: of the choice, of the best wave, and of one position at a time if that
            was possible.
    """

    tick: int
    sampler: str
    settings: dict[str, int]
    measured: dict[str, float]
    seconds_per_token: dict[str, float]

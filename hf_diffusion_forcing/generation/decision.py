"""What "auto" settings chose, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """One choice of settings by their estimated time.

    Attributes:
        tick: how many ticks of the call came before it; 0 for the choice made when the prompt was read.
        sampler: the sampler whose ticks are run: "diffusion_forcing", "adaptive" or "speculative_wavefront".
        settings: the settings chosen, by name.
        measured: what the choice rests on. `recurrences`: how many a position needs; `tick_seconds` and
            `tokens_per_tick` (per row): of the ticks since the last choice. For the lossless wavefront, instead of
            `recurrences`: `acceptance`, the share of right first drafts; `guess_coverage`, the share of drafts behind
            which anything is guessed; `guess_accuracy`, the share of right guesses.
        seconds_per_token: estimated, per row: of the choice, of the best wave, and of one position at a time if that
            was possible. For the lossless wavefront: of the choice, of the best without guesses, of the default draft
            depth without guesses (the preset "lossless"), and of autoregression. Where `draft_tokens` is a number,
            it replaces "without guesses".
    """

    tick: int
    sampler: str
    settings: dict[str, int]
    measured: dict[str, float]
    seconds_per_token: dict[str, float]

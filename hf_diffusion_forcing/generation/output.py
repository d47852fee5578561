"""The output of the samplers and counts of their work."""

from dataclasses import asdict, dataclass, field

from transformers.generation import GenerateDecoderOnlyOutput

from ..compat import CacheOutput
from .decision import Decision
from .position import Position
from .trace import Trace


@dataclass
class SamplerStats:
    """Counts of one `generate()` call.

    Attributes:
        ticks: decoding ticks: embed, some recurrences, decode.
        core_passes: core calls in those ticks, each over the whole wave of all rows.
        positions_refined: sum of wave widths over core calls and rows.
        prefill_core_passes: core calls over the prompt.
        wavefront, inner_recurrence: for diffusion forcing, as given or as last chosen by `wavefront="auto"`, which may
            also refine one position at a time: then both are 1.
        draft_depth: for the speculative wavefront, as given or as last chosen by `draft_depth="auto"`.
        waves: how often the speculative wavefront started a wave: once per row and after every wrong draft.
        wasted_recurrences: recurrences of positions that were dropped.
        proposals: by readout depth, how many drafts were later checked and how many of them were right.
        guesses: the same for guesses made before any readout (`draft_tokens`), by their source: a draft source's name,
            "dropped_drafts", or "extra_tokens".
        settled: with a trace, how many of each row's tokens the remaining recurrences were estimated not to change when
            they were committed (`TokenTrace.settled`); None where this is not known.
        decisions: what `wavefront="auto"` or `draft_depth="auto"` chose, in order, and why.
        tokens_committed: new tokens per row; the first of a row comes from the prompt's own pass.
    """

    ticks: int = 0
    core_passes: int = 0
    positions_refined: int = 0
    prefill_core_passes: int = 0
    wavefront: int | None = None
    inner_recurrence: int | None = None
    tokens_committed: list[int] = field(default_factory=list)
    draft_depth: int | None = None
    waves: int = 0
    wasted_recurrences: int = 0
    proposals: dict[int, tuple[int, int]] = field(default_factory=dict)
    guesses: dict[str, tuple[int, int]] = field(default_factory=dict)
    settled: list[int] | None = None
    decisions: list[Decision] = field(default_factory=list)

    def count_proposals(self, position: Position, token: int) -> None:
        """Count a position's drafts and its guess of the next token, once that token is known."""
        for depth, proposed in position.proposals.items():
            made, right = self.proposals.get(depth, (0, 0))
            self.proposals[depth] = made + 1, right + (proposed == token)
        if position.guess is not None:
            source, guessed = position.guess
            made, right = self.guesses.get(source, (0, 0))
            self.guesses[source] = made + 1, right + (guessed == token)

    @property
    def core_passes_per_token(self) -> float:
        """Core passes per decoded token of all rows; 0.0 without any."""
        return self.core_passes / self.decoded_tokens if self.decoded_tokens else 0.0

    @property
    def acceptance(self) -> dict[int, float]:
        """Share of right drafts by readout depth."""
        return {depth: right / made for depth, (made, right) in sorted(self.proposals.items())}

    @property
    def mean_accepted_length(self) -> float:
        """Tokens per wave of the speculative wavefront, which a wrong draft ends; 0.0 without waves."""
        return self.decoded_tokens / self.waves if self.waves else 0.0

    @property
    def decoded_tokens(self) -> int:
        """Tokens produced by ticks: all but each row's first."""
        return sum(max(count - 1, 0) for count in self.tokens_committed)

    @property
    def recurrences_per_token(self) -> float:
        """Position refinements per decoded token; 0.0 without any."""
        return self.positions_refined / self.decoded_tokens if self.decoded_tokens else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Decoded tokens per tick; 0.0 without any."""
        return self.decoded_tokens / self.ticks if self.ticks else 0.0

    def to_dict(self) -> dict:
        """Counts and ratios as plain JSON values."""
        names = ("recurrences_per_token", "tokens_per_forward", "acceptance", "mean_accepted_length")
        ratios = {name: getattr(self, name) for name in ("core_passes_per_token", *names)}
        return asdict(self) | ratios


@dataclass
class DiffusionForcingOutput(CacheOutput, GenerateDecoderOnlyOutput):
    """Output of `generate(sampler="diffusion_forcing", return_dict_in_generate=True)`.

    The fields of transformers' own output (without beams), plus the sampler's stats and trace.

    Attributes:
        sequences: int64 [batch, length], prompt and new tokens; rows that ended early are padded on the right.
        scores: with `output_scores`, float32 [batch, vocabulary] per new token, after the processors; zeros once a row
            has ended.
        logits: with `output_logits`, the same before the processors.
        cache: a `RecurrentDepthCache` with every column but the last of the row that ended first; before transformers
            5.24 the field is `past_key_values`, which still works.
        attentions, hidden_states: None, even if asked for. A token has no single pass they could come from: its
            position is refined in several ticks, mostly as a draft. `forward()` on the finished text returns them, and
            `sampler="autoregressive"` fills them.
        stats: `SamplerStats` of the call.
        trace: with `return_trace`, the `Trace` of the call.
    """

    stats: SamplerStats | None = None
    trace: Trace | None = None

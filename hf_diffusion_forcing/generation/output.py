"""What the samplers return, and how much work they did."""

from dataclasses import asdict, dataclass, field

from transformers.generation import GenerateDecoderOnlyOutput

from ..compat import CacheOutput
from .trace import Trace


@dataclass
class SamplerStats:
    """Counts of one `generate()` call.

    Attributes:
        ticks: decoding ticks: embed, some recurrences, decode.
        core_passes: core calls in those ticks, each over the whole wave of all rows.
        positions_refined: sum of wave widths over core calls and rows.
        prefill_core_passes: core calls over the prompt.
        wavefront, inner_recurrence: of diffusion forcing, as given or as chosen by `wavefront="auto"`.
        draft_depth: of the speculative wavefront, as given or as chosen by `draft_depth="auto"`.
        waves: how often the speculative wavefront began a row's wave: once, and after every draft that was wrong.
        wasted_recurrences: recurrences of positions that were dropped.
        proposals: by the depth they were read at, how many next tokens were proposed and then decided, and how many
            were right.
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

    def count_proposals(self, proposals: dict[int, int], token: int) -> None:
        """Count what a position proposed, by depth, now that its token is known."""
        for depth, proposed in proposals.items():
            made, right = self.proposals.get(depth, (0, 0))
            self.proposals[depth] = made + 1, right + (proposed == token)

    @property
    def acceptance(self) -> dict[int, float]:
        """Share of right proposals, by the depth they were read at."""
        return {depth: right / made for depth, (made, right) in sorted(self.proposals.items())}

    @property
    def mean_accepted_length(self) -> float:
        """Tokens that a wave of the speculative wavefront decoded before a wrong draft ended it; 0.0 without waves."""
        return self.decoded_tokens / self.waves if self.waves else 0.0

    @property
    def decoded_tokens(self) -> int:
        """Tokens that ticks produced: all but each row's first."""
        return sum(max(count - 1, 0) for count in self.tokens_committed)

    @property
    def recurrences_per_token(self) -> float:
        """Position refinements per decoded token, 0.0 when nothing was decoded."""
        return self.positions_refined / self.decoded_tokens if self.decoded_tokens else 0.0

    @property
    def tokens_per_forward(self) -> float:
        """Decoded tokens per tick, 0.0 when there was none."""
        return self.decoded_tokens / self.ticks if self.ticks else 0.0

    def to_dict(self) -> dict:
        """Counts and ratios as plain JSON values."""
        names = ("recurrences_per_token", "tokens_per_forward", "acceptance", "mean_accepted_length")
        ratios = {name: getattr(self, name) for name in names}
        return asdict(self) | ratios


@dataclass
class DiffusionForcingOutput(CacheOutput, GenerateDecoderOnlyOutput):
    """Output of `generate(sampler="diffusion_forcing", return_dict_in_generate=True)`.

    The fields of transformers' own output of a text without beams, and what the sampler did.

    Attributes:
        sequences: int64 [batch, length], prompt and new tokens; rows that ended early are padded on the right.
        scores: with `output_scores`, per new token float32 [batch, vocabulary] after the processors; zeros where a row
            had ended.
        logits: with `output_logits`, the same before the processors.
        cache: a `RecurrentDepthCache` that holds every column but the last of the row that ended first; also
            `past_key_values`, its name before transformers 5.24.
        attentions, hidden_states: not kept.
        stats: `SamplerStats` of the call.
        trace: with `return_trace`, the `Trace` of the call.
    """

    stats: SamplerStats | None = None
    trace: Trace | None = None

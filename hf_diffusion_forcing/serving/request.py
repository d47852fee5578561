"""One request: a row, how it is decoded, and what becomes of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.generation import GenerationMode

from ..compat.continuous_batching import GenerationOutput, RequestStatus
from ..generation.call import Call
from ..generation.choice import TokenChoice
from ..generation.mixin import RecurrentDepthGenerationMixin
from ..generation.prepared import Prepared, preparing
from ..generation.row import Row
from ..generation.sampler import TickingSampler
from ..generation.samplers import SAMPLERS
from ..generation.stopping import Stopping
from ..randomness import row_seeds
from ..settings.autoregressive import AutoregressiveConfig
from ..settings.sampler_config import SamplerConfig
from .guards import GuardedChoice, GuardedStopping, GuardedStreamer


class Settings(NamedTuple):
    """What rows of one group have in common.

    Attributes:
        sampler_class: decodes them.
        config: its settings without the seed, every depth filled in.
        chunk: positions of a prompt to read at once; all when None.
        device: of the ids.
    """

    sampler_class: type[TickingSampler]
    config: SamplerConfig
    chunk: int | None
    device: torch.device

    def can_share(self, other: Settings) -> bool:
        """Whether rows with these settings can tick together."""
        if self.config.follows_prompt or self[:1] + self[2:] != other[:1] + other[2:]:
            return False
        try:
            return bool(self.config == other.config)
        except Exception:  # hooks of the user may compare as they like; those that cannot be compared differ
            return False


@dataclass(eq=False)
class Request:
    """A request from its arrival to its last token.

    Attributes:
        id: given by the caller, or counted.
        settings: how it is decoded.
        streaming: whether every new token is delivered, or only the end.
        records_times: whether the time of every token is kept.
        row: the sequence being decoded; set once the request is made.
        error: why it has failed; None if it has not.
        times: `time.perf_counter()` at every token.
    """

    id: str
    settings: Settings
    streaming: bool = False
    records_times: bool = False
    row: Row | None = None
    status: RequestStatus = RequestStatus.PENDING
    error: Exception | None = None
    created: float = field(default_factory=time.perf_counter)
    began: float = -1
    ended: float = -1
    times: list[float] = field(default_factory=list)
    _valid: int | None = None

    @property
    def positions(self) -> int:
        """Positions that its row may come to have."""
        return self.row.last_position + 1

    @property
    def tokens(self) -> list[int]:
        """The new tokens; those before the error, if it has failed."""
        return self.row.ids[self.row.prompt_length :][: self._valid]

    @property
    def is_over(self) -> bool:
        return self.status >= RequestStatus.FINISHED

    def fail(self, error: Exception) -> None:
        """Keep the first error; the loop then ends the row."""
        if self.error is None:
            self.error, self._valid = error, len(self.row.ids) - self.row.prompt_length

    def note_tokens(self) -> bool:
        """Note the time of tokens that are new; whether there are any."""
        new = len(self.tokens) - len(self.times)
        self.times += [time.perf_counter()] * new
        return new > 0

    def finish(self) -> None:
        """End it: finished, or failed if there was an error."""
        if self.row.call.streamer is not None:
            self.row.call.streamer.end()
        self.ended = time.perf_counter()
        self.status = RequestStatus.FINISHED if self.error is None else RequestStatus.FAILED

    def begin(self) -> None:
        self.began, self.status = time.perf_counter(), RequestStatus.PREFILLING

    def output(self) -> GenerationOutput:
        """The request as transformers' continuous batching reports it."""
        row = self.row
        return GenerationOutput(
            request_id=self.id,
            prompt_ids=row.ids[: row.prompt_length],
            generated_tokens=self.tokens,
            logprobs=row.logprobs[: self._valid],
            error=None if self.error is None else str(self.error),
            status=self.status,
            created_time=self.created,
            lifespan=(self.began, self.ended),
            timestamps=self.times[:] if self.records_times else None,
        )


def prepare(
    model: RecurrentDepthGenerationMixin,
    input_ids: Sequence[int] | torch.Tensor,
    generation_config: GenerationConfig | None,
    keywords: dict[str, Any],
) -> Prepared:
    """Check a request with `generate()` itself, which prepares it as it would its own call.

    Raises:
        TypeError, ValueError: what `generate()` raises with these arguments, or a setting that only it supports.
    """
    if keywords.get("return_trace"):
        raise ValueError("return_trace is not possible in continuous batching: pass it to generate().")
    ids = as_ids(input_ids).to(model.device if model.device.type != "meta" else "cpu")
    with preparing() as prepared:
        model.generate(ids, generation_config=generation_config, **keywords)
    if not prepared:
        mode = model.decoding_config(generation_config, **keywords).get_generation_mode()
        raise ValueError(
            f"{mode.value} is not possible in continuous batching, only greedy decoding and sampling: call generate()."
        )
    (call,) = prepared
    config = call.generation_config
    if config.get_generation_mode() not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError("Continuous batching decodes greedily or samples: call generate() for other modes.")
    if config.use_cache is False:
        raise ValueError("use_cache=False is not possible in continuous batching: leave it out.")
    if any(isinstance(each, UnbatchedClassifierFreeGuidanceLogitsProcessor) for each in call.logits_processor):
        raise ValueError("guidance_scale is not possible in continuous batching: call generate().")
    return call


def as_ids(input_ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """A prompt as int64 [1, length].

    Raises:
        TypeError: it is no sequence of ints.
        ValueError: it is empty, or has several rows.
    """
    try:
        ids = torch.as_tensor(input_ids, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"input_ids must be a list of ints, the ids of one prompt: {error}") from error
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1:
        raise ValueError(f"input_ids has shape {tuple(ids.shape)}: pass one prompt, or several to add_requests().")
    if not len(ids):
        raise ValueError("The prompt is empty: pass at least one token.")
    return ids[None]


def request_of(name: str, call: Prepared, streaming: bool, records_times: bool, keeps_logprobs: bool) -> Request:
    """The request that a prepared call of one row is."""
    config, ids = call.generation_config, call.prompt.ids
    own = config.sampler_config
    if not config.sampler:
        # Without a sampler transformers would decode, token by token; here this package's own loop does.
        own = AutoregressiveConfig(**{field: getattr(own, field) for field in own.fields()})
    seeds = row_seeds(own.seed, 1).tolist()
    shared = copy.copy(own)
    shared.seed = None
    sampler = SAMPLERS[own.sampler].ticking()
    request = Request(name, Settings(sampler, shared, config.prefill_chunk_size, ids.device), streaming, records_times)
    stopping, _ = Stopping.of(call.stopping_criteria, 1, ids.device)
    choice = TokenChoice(ids, call.logits_processor, stopping.max_length, call.pad_token_id, bool(config.do_sample))
    guarded = Call(
        GuardedChoice(choice, request),
        GuardedStopping(stopping, request),
        None if call.streamer is None else GuardedStreamer(call.streamer, request),
        keeps_logprobs=keeps_logprobs,
    )
    (request.row,) = call.prompt.rows(guarded, seeds, 0)
    return request

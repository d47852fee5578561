"""A `generate()` call that has been checked and prepared, but not decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ..settings.generation_config import RecurrentDepthGenerationConfig
from .prompt_inputs import PromptInputs


@dataclass(eq=False)
class Prepared:
    """What `generate()` hands to the decoding loop.

    Attributes:
        prompt: the prompts, checked.
        logits_processor, stopping_criteria: transformers' own and the caller's.
        generation_config: its `sampler_config` is the sampler's dataclass with every depth filled in.
        streamer: of the caller.
        pad_token_id: the one `generate()` has decided on.
    """

    prompt: PromptInputs
    logits_processor: LogitsProcessorList
    stopping_criteria: StoppingCriteriaList
    generation_config: RecurrentDepthGenerationConfig
    streamer: BaseStreamer | None
    pad_token_id: int | None


_WANTED: ContextVar[list[Prepared] | None] = ContextVar("wanted", default=None)


@contextmanager
def preparing() -> Iterator[list[Prepared]]:
    """Within the context, `generate()` calls of this thread only prepare: each adds a `Prepared` to the list.

    So a request means exactly what the same `generate()` call means, checks and messages included.
    """
    prepared: list[Prepared] = []
    token = _WANTED.set(prepared)
    try:
        yield prepared
    finally:
        _WANTED.reset(token)


def wants_prepared() -> list[Prepared] | None:
    """The list that the current call's `Prepared` goes to; None if the call is to decode."""
    return _WANTED.get()

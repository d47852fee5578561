"""One text of an HTTP request, on the engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import HTTPException
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..compat.continuous_batching import GenerationOutput
from ..compat.serving import BaseGenerateManager, GenerationState
from .errors import RETRY_AFTER
from .manager import ContinuousBatchingManager
from .text_stream import StopCut, TextStream
from .visit import VISIT


class Answer(BaseGenerateManager):
    """What transformers' handlers generate with: adds one request to the engine and follows it.

    Args:
        manager: of the engine.
        stops: the text ends before the first of them.
        keeps_logprobs: whether the logarithms of the tokens' probabilities are wanted.
        quotes: whether the handler puts the message of an error between quotes as it is.

    Attributes:
        begun: set when the first tokens are there, or the end.
        error: why it failed; None if it has not.
        output: the newest result.
        stream: where its text goes if it is streamed.
    """

    def __init__(
        self,
        manager: ContinuousBatchingManager,
        stops: Sequence[str] = (),
        keeps_logprobs: bool = False,
        quotes: bool = False,
    ):
        self.manager, self.stops, self.keeps_logprobs, self.quotes = manager, stops, keeps_logprobs, quotes
        self.begun = asyncio.Event()
        self.error: str | None = None
        self.output: GenerationOutput | None = None
        self.stream: TextStream | None = None
        self.visit = VISIT.get()

    def generate_streaming(
        self,
        model: PreTrainedModel,
        processor: PreTrainedTokenizerBase,
        inputs: dict[str, Any],
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, TextStream]:
        """Add a request; its queue of texts, and their stream."""
        # The visit's end cancels what it has added, whatever ended it.
        self.stream = TextStream(lambda: None, processor.backend_tokenizer, self.stops, response_parser)
        self._add(processor, inputs, gen_config, self._pass_on, streaming=True)
        return self.stream.queue, self.stream

    async def generate_non_streaming(
        self,
        model: PreTrainedModel,
        processor: PreTrainedTokenizerBase,
        inputs: dict[str, Any],
        gen_config: GenerationConfig,
        request_id: str,
    ) -> tuple[str, int, list[int]]:
        """Add a request and wait for its end: its text, the prompt's length, and its tokens."""
        self._add(processor, inputs, gen_config, self._note, record_timestamps=True)
        await self.begun.wait()
        if self.error is not None:
            raise RuntimeError(self.error)
        tokens = self.output.generated_tokens
        text = StopCut(self.stops).of(processor.decode(tokens, skip_special_tokens=True))
        return text, len(inputs["input_ids"]), tokens

    def stop(self) -> None:
        """Nothing to do: the engine is not its own."""

    def _add(
        self,
        processor: PreTrainedTokenizerBase,
        inputs: dict[str, Any],
        config: GenerationConfig,
        callback: Callable[[GenerationOutput], None],
        **how: bool,
    ) -> None:
        if not self.manager.is_running():
            raise HTTPException(503, "The decoding thread has ended: restart the server.", RETRY_AFTER)
        ids = inputs["input_ids"]
        name = self.manager.add_request(
            ids,
            generation_config=config,
            tokenizer=processor,
            return_logprobs=self.keeps_logprobs,
            **how,
        )
        self.visit.request_ids.append(name)
        self.visit.prompt_tokens += len(ids)
        self.manager.register_result_handler(name, callback)

    def _note(self, output: GenerationOutput) -> list[int]:
        """Note a result; its new tokens. On the event loop."""
        before = 0 if self.output is None else len(self.output.generated_tokens)
        self.output, new = output, output.generated_tokens[before:]
        if new:
            self.visit.completion_tokens += len(new)
            self.visit.note_first_token(output.timestamps[0] if output.timestamps else time.perf_counter())
        self.error = output.error
        self.begun.set()
        return new

    def _pass_on(self, output: GenerationOutput) -> None:
        self.stream.feed(self._note(output))
        if output.is_finished():
            self.stream.end(self.error and self._message(self.error))

    def _message(self, error: str) -> str:
        return error.translate(str.maketrans(QUOTED)) if self.quotes else error


QUOTED = {character: f"\\u{ord(character):04x}" for character in ('"', "\\", *map(chr, range(32)))}
"""Characters that may not stand between quotes in JSON."""


class OneAnswer(GenerationState):
    """The state of transformers' handlers for one answer.

    Args:
        answer: decodes it.
    """

    def __init__(self, answer: Answer):
        super().__init__()
        self.answer = answer

    def use_continuous_batching(self, *args: Any) -> bool:
        return True

    def get_manager(self, *args: Any, **kwargs: Any) -> Answer:
        return self.answer


class EngineState(GenerationState):
    """The state behind /health.

    Args:
        manager: of the engine.
    """

    def __init__(self, manager: ContinuousBatchingManager):
        super().__init__()
        self.manager = manager

    def is_cb_alive(self) -> bool:
        return self.manager.is_running()

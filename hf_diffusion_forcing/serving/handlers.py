"""transformers' handlers of the OpenAI routes, on the engine."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from transformers import GenerationConfig

from ..compat.serving import ChatCompletionHandler, CompletionHandler, GenerationState, ResponseHandler
from ..randomness import row_seeds
from ..settings.generation_config import SAMPLER_NAMES, RecurrentDepthGenerationConfig
from .answer import Answer, OneAnswer
from .choices import Choices
from .fields import Asked, asked, biases, check_body
from .service import Service


class OnEngine:
    """A handler whose texts the engine decodes, each by a request of its own.

    Args:
        models: transformers' model manager.
        service: has the engine and the limits.
    """

    required: str
    """The field without which there is no prompt."""
    supported: frozenset[str] = frozenset()
    """Fields that other routes do not support."""
    is_legacy = False
    """Whether it is completions, whose answers have their own form."""

    def __init__(self, models: Any, service: Service):
        super().__init__(models, GenerationState())
        self.service = service

    async def handle_request(self, body: dict[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        """Answer a request; a stream begins once its first tokens are there.

        Raises:
            HTTPException, ValueError, TypeError: the request is wrong.
            queue.Full: too many wait.
            RuntimeError: decoding failed before the response began.
        """
        if body.get(self.required) is None:
            raise HTTPException(400, f"The request lacks the field {self.required!r}.")
        check_body(body, self.supported)
        wish = self._wish(body)
        answers = [self._answer(wish) for _ in range(wish.n)]
        seeds = [body.get("seed")]
        if wish.n > 1:
            seeds = row_seeds(body.get("seed"), wish.n).tolist()
        turns = [
            self.one_text(answer, copy.deepcopy(body) | {"seed": seed}, request_id)
            for answer, seed in zip(answers, seeds, strict=True)
        ]
        responses = await all_of(turns)
        for answer in answers:
            await answer.begun.wait()
            if answer.error is not None and answer.stream is not None:
                raise RuntimeError(answer.error)
        return self._together(responses, answers, wish)

    def _wish(self, body: dict[str, Any]) -> Asked:
        return asked(body, self.service.limits.max_choices, self.is_legacy)

    def _answer(self, wish: Asked) -> Answer:
        return Answer(self.service.manager, wish.stops, wish.logprobs, quotes=True)

    async def one_text(self, answer: Answer, body: dict[str, Any], request_id: str) -> JSONResponse | StreamingResponse:
        """One of the texts, as transformers' handler answers it.

        Raises:
            HTTPException: a field is missing.
        """
        own = copy.copy(self)
        own.generation_state = OneAnswer(answer)
        try:
            return await super(OnEngine, own).handle_request(body, request_id)
        except KeyError as error:
            raise HTTPException(400, f"The request lacks the field {error}.") from error

    def _together(
        self, responses: list[JSONResponse | StreamingResponse], answers: list[Answer], wish: Asked
    ) -> JSONResponse | StreamingResponse:
        choices = Choices(answers, wish, self.service.tokenizer, self.is_legacy)
        if isinstance(responses[0], StreamingResponse):
            return StreamingResponse(choices.streamed(responses), media_type="text/event-stream")
        return choices.whole(responses)

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: RecurrentDepthGenerationConfig, **kwargs: Any
    ) -> RecurrentDepthGenerationConfig:
        """transformers' own, with the sampler, the seed and the limits of this server."""
        given = json.loads(body["generation_config"]) if body.get("generation_config") is not None else {}
        if not isinstance(given, dict):
            raise HTTPException(400, "'generation_config' must be a JSON object.")
        if given.get("num_return_sequences", 1) != 1:
            raise HTTPException(400, "num_return_sequences is the field 'n' here: pass n.")
        # Without its seed, by which transformers' handler would seed the whole process.
        plain = {name: value for name, value in body.items() if name not in ("seed", "logit_bias")}
        config = super()._build_generation_config(plain, model_generation_config)
        config = RecurrentDepthGenerationConfig.of(config)
        if not config.names_sampler:
            for name in SAMPLER_NAMES:
                setattr(config, name, getattr(model_generation_config, name))
        if "prefill_chunk_size" not in given:
            config.prefill_chunk_size = model_generation_config.prefill_chunk_size
        if body.get("logit_bias"):
            config.sequence_bias = biases(body["logit_bias"], self.service.manager.model.config.vocab_size)
        self._limit(config, body, given)
        seed = self._seed(body, config)
        return config if seed is None else config.with_settings(seed=seed)

    def _limit(self, config: GenerationConfig, body: dict[str, Any], given: dict[str, Any]) -> None:
        """Hold a request to the server's limit of new tokens; one that names none gets what is allowed."""
        limit = self.service.limits.max_new_tokens
        if limit is None:
            return
        fields = ("max_completion_tokens", "max_tokens", "max_output_tokens")
        named = [name for name in fields if body.get(name) is not None]
        named += [name for name in ("max_new_tokens", "max_length") if given.get(name) is not None]
        wanted = config.max_new_tokens or config.max_length or 0
        if named and wanted > limit:
            raise HTTPException(400, f"{named[0]}={wanted} is more than this server's limit of {limit} new tokens.")
        if not named:
            config.max_new_tokens = min(config.max_new_tokens or limit, limit)

    def _seed(self, body: dict[str, Any], config: RecurrentDepthGenerationConfig) -> int | None:
        """The request's own seed or, unless it samples, the server's: equal prompts then begin with equal states."""
        if body.get("seed") is not None:
            return body["seed"]
        _, _, stored = config.stored()
        return None if config.do_sample or stored.get("seed") is not None else self.service.seed


async def all_of(turns: list[Any]) -> list[Any]:
    """What several coroutines return; the first error ends them all."""
    if len(turns) == 1:
        return [await turns[0]]
    tasks = [asyncio.ensure_future(turn) for turn in turns]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


class ChatCompletions(OnEngine, ChatCompletionHandler):
    required = "messages"


class Completions(OnEngine, CompletionHandler):
    required, supported, is_legacy = "prompt", frozenset({"prompt"}), True


class Responses(OnEngine, ResponseHandler):
    required = "input"

    def _wish(self, body: dict[str, Any]) -> Asked:
        return Asked()

    def _answer(self, wish: Asked) -> Answer:
        return Answer(self.service.manager)

    def _together(
        self, responses: list[JSONResponse | StreamingResponse], answers: list[Answer], wish: Asked
    ) -> JSONResponse | StreamingResponse:
        return responses[0]

"""Several answers of transformers' handlers as one response of the OpenAI API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from transformers import PreTrainedTokenizerBase

from .answer import Answer
from .errors import error_body
from .fields import Asked

SHOWN = {"content", "reasoning_content", "tool_calls"}
"""Fields of a chat's event that tokens have come to."""


class Choices:
    """The texts of one request: numbered, with their log probabilities, and with the counts of tokens of all.

    Args:
        answers: one for each text.
        asked: what the request asks for.
        tokenizer: writes tokens.
        legacy: whether the route is completions.
    """

    def __init__(self, answers: Sequence[Answer], asked: Asked, tokenizer: PreTrainedTokenizerBase, legacy: bool):
        self.answers, self.asked, self.tokenizer, self.legacy = answers, asked, tokenizer, legacy

    def whole(self, responses: Sequence[JSONResponse]) -> JSONResponse:
        """One response with all texts."""
        bodies = [json.loads(response.body) for response in responses]
        choices = []
        for number, (body, answer) in enumerate(zip(bodies, self.answers, strict=True)):
            choice = body["choices"][0] | {"index": number}
            if self.asked.logprobs:
                choice["logprobs"] = self.logprobs(answer, range(len(answer.output.generated_tokens)))
            choices.append(choice)
        return JSONResponse(bodies[0] | {"choices": choices, "usage": self.usage()})

    async def streamed(self, responses: Sequence[StreamingResponse]) -> AsyncIterator[str]:
        """The events of all streams as they come."""
        tasks: list[asyncio.Task] = []
        events: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()
        try:
            for number, response in enumerate(responses):
                tasks.append(asyncio.create_task(self._pass_on(number, response, events)))
            left, last = len(tasks), {}
            while left:
                if (event := await events.get()) is None:
                    left -= 1
                    continue
                yield as_event(event)
                if "error" in event:
                    return
                last = event
            for task in tasks:
                await task
            if self.asked.include_usage:
                yield as_event(last | {"choices": [], "usage": self.usage()})
            yield "data: [DONE]\n\n"
        finally:
            for task in tasks:
                task.cancel()

    async def _pass_on(self, number: int, response: StreamingResponse, events: asyncio.Queue) -> None:
        answer = self.answers[number]
        try:
            async with aclosing(response.body_iterator) as chunks:
                async for chunk in chunks:
                    for line in filter(None, chunk.split("\n\n")):
                        events.put_nowait(self._changed(json.loads(line.removeprefix("data: ")), number, answer))
        finally:
            events.put_nowait(None)

    def _changed(self, event: dict[str, Any], number: int, answer: Answer) -> dict[str, Any]:
        """An event of one text as that of one of several."""
        if "error" in event:
            return error_body(answer.error, "server_error")
        event.pop("usage", None)
        choice = event["choices"][0]
        choice["index"] = number
        shown = (
            choice.get("text")
            if self.legacy
            else choice["delta"].keys() & {"content", "reasoning_content", "tool_calls"}
        )
        tokens_of = answer.stream.tokens_of
        if self.asked.logprobs and tokens_of and (shown or choice.get("finish_reason")):
            choice["logprobs"] = self.logprobs(answer, tokens_of.popleft())
        if self.asked.include_usage:
            event["usage"] = None
        return event

    def usage(self) -> dict[str, int]:
        """The prompt counts once."""
        prompt = len(self.answers[0].output.prompt_ids)
        new = sum(len(answer.output.generated_tokens) for answer in self.answers)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    def logprobs(self, answer: Answer, numbers: Sequence[int]) -> dict[str, Any]:
        """The log probabilities of some tokens of a text, as the route writes them."""
        output = answer.output
        texts = [self.tokenizer.decode([output.generated_tokens[number]]) for number in numbers]
        values = [output.logprobs[number] for number in numbers]
        if self.legacy:
            return {"tokens": texts, "token_logprobs": values, "top_logprobs": None, "text_offset": None}
        content = [
            {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
            for text, value in zip(texts, values, strict=True)
        ]
        return {"content": content, "refusal": None}


def as_event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"

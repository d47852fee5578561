"""Answers that say what is wrong: before a stream begins if possible, and always as JSON."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from transformers import PreTrainedModel

from ..compat.serving import GenerateManager, GenerationState, StreamError


def error_body(error: Exception | str, kind: str) -> dict[str, Any]:
    """An error as the OpenAI API writes it."""
    return {"error": {"message": str(error), "type": kind}}


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """The response to a request that is wrong."""
    status, message = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, error)
    return JSONResponse(error_body(message, "invalid_request_error"), status_code=status)


async def fail(request: Request, error: Exception) -> JSONResponse:
    """The response to a request on which the server failed."""
    return JSONResponse(error_body(error, "server_error"), status_code=500)


class Recorded:
    """A model that keeps the error of `generate()`, of which transformers passes on only the message."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.model.generate(*args, **kwargs)
        except Exception as error:
            self.error = error
            raise


class Stream:
    """The queue between `generate()` and the handler that streams; the first item can be awaited ahead.

    Args:
        queue: transformers' own, of texts and at last None or a `StreamError`.
        model: the model that fills it.
    """

    def __init__(self, queue: asyncio.Queue, model: Recorded):
        self.queue, self.model = queue, model
        self.ahead: list[Any] = []

    async def begin(self) -> None:
        """Wait for the first item; raises the error of `generate()` if it failed before."""
        item = await self.queue.get()
        if isinstance(item, StreamError):
            raise self.model.error
        self.ahead.append(item)

    async def get(self) -> Any:
        return self.ahead.pop() if self.ahead else await self.queue.get()

    def get_nowait(self) -> Any:
        return self.ahead.pop() if self.ahead else self.queue.get_nowait()

    async def with_json_errors(self, chunks: AsyncIterator[str]) -> AsyncIterator[str]:
        """The chunks of a response, with an error as JSON: transformers puts its message between quotes as it is."""
        async with aclosing(chunks):
            async for chunk in chunks:
                written = f'data: {{"error": "{self.model.error}"}}\n\n'
                if self.model.error is not None and chunk.endswith(written):
                    body = json.dumps(error_body(self.model.error, "server_error"))
                    chunk = f"{chunk.removesuffix(written)}data: {body}\n\n"
                yield chunk


BEGUN: ContextVar[list[Stream]] = ContextVar("BEGUN")
"""The streams of the request being handled: one, or none."""


class RecordingManager(GenerateManager):
    """Generates on transformers' inference thread; streams can be looked at before they are answered."""

    def generate_streaming(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> tuple[Stream, Any]:
        recorded = Recorded(model)
        queue, streamer = super().generate_streaming(recorded, *args, **kwargs)
        stream = Stream(queue, recorded)
        BEGUN.get().append(stream)
        return stream, streamer


class RecordingState(GenerationState):
    """The generation state of one model, without continuous batching."""

    def __init__(self):
        super().__init__()
        self.manager = RecordingManager()

    def get_manager(self, model_id: str, use_cb: bool = False) -> RecordingManager:
        return self.manager


class Checked:
    """A handler that refuses a stream before it begins, and a request that lacks a field with status 400."""

    async def handle_request(self, body: dict, request_id: str) -> JSONResponse | StreamingResponse:
        begun: list[Stream] = []
        BEGUN.set(begun)
        try:
            response = await super().handle_request(body, request_id)
        except KeyError as error:
            raise HTTPException(400, f"The request lacks the field {error}.") from error
        for stream in begun:
            await stream.begin()
            response.body_iterator = stream.with_json_errors(response.body_iterator)
        return response

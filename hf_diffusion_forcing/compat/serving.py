"""The parts of `transformers serve` and of uvicorn. Importing them needs fastapi, uvicorn and openai."""

from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import BaseGenerateManager, GenerationState, response_events_to_chunks
from transformers.cli.serving.utils import _StreamError as StreamError
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = [
    "BaseGenerateManager",
    "ChatCompletionHandler",
    "CompletionHandler",
    "GenerationState",
    "H11Protocol",
    "ModelManager",
    "ResponseHandler",
    "StreamError",
    "SystemOneHandler",
    "TranscriptionHandler",
    "build_server",
    "response_events_to_chunks",
]

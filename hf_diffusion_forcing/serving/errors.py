"""Errors as JSON, as the OpenAI API writes them."""

from __future__ import annotations

import queue
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse

RETRY_AFTER = {"Retry-After": "1"}
"""A refusal because of the load: try again in a second."""


def error_body(error: Exception | str, kind: str) -> dict[str, Any]:
    """An error as the OpenAI API writes it."""
    return {"error": {"message": str(error), "type": kind}}


def error_response(status: int, message: Exception | str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error with its status; from 500 on it is the server's, below it is the request's."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse(error_body(message, kind), status_code=status, headers=headers)


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """The response to a request that is wrong."""
    if isinstance(error, HTTPException):
        return error_response(error.status_code, error.detail, error.headers)
    return error_response(400, error)


async def put_off(request: Request, error: queue.Full) -> JSONResponse:
    """The response to a request that finds the queue full."""
    return error_response(503, error, RETRY_AFTER)


async def fail(request: Request, error: Exception) -> JSONResponse:
    """The response to a request on which the server failed."""
    return error_response(500, error)

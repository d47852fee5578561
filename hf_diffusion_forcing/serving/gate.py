"""What every HTTP request passes: the key, the limits, the client's presence, the counts and the log."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access import has_key
from .choices import as_event
from .errors import RETRY_AFTER, error_body, error_response
from .metrics import Metrics
from .service import Service
from .visit import VISIT, Visit

logger = logging.getLogger(__name__)

BODY_TIMEOUT = 30.0
"""Seconds a client has to send the body."""

OPEN = ("/health",)
"""Paths without a key: a balancer asks them."""

CLOSE = {"Connection": "close"}


class Gate:
    """ASGI middleware around all routes.

    Args:
        app: the routes.
        service: what they share.
        metrics: count the requests.
    """

    def __init__(self, app: ASGIApp, service: Service, metrics: Metrics):
        self.app, self.service, self.metrics = app, service, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit(scope["method"], scope["path"])
        VISIT.set(visit)
        self.service.visits.add(visit)
        passage = Passage(visit, send)
        try:
            await self._answer(scope, receive, passage)
        except BaseException:
            visit.status, visit.outcome = visit.status or 500, "failed"
            raise
        finally:
            # Whatever ended it: nobody waits for its texts any longer.
            for name in visit.request_ids:
                self.service.manager.cancel_request(name)
            self.service.visits.discard(visit)
            self.metrics.count(visit)
            logger.info("request", extra={"fields": visit.to_dict()})

    async def _answer(self, scope: Scope, receive: Receive, passage: Passage) -> None:
        service, visit = self.service, passage.visit
        if service.api_key is not None and visit.path not in OPEN and not has_key(scope["headers"], service.api_key):
            await passage.refuse(401, "The API key is missing or wrong.", {"WWW-Authenticate": "Bearer"} | CLOSE)
            return
        if service.is_draining and (visit.method == "POST" or visit.path in OPEN):
            await passage.refuse(503, "The server is stopping: ask another one, or later.", RETRY_AFTER | CLOSE)
            return
        limit = service.limits.max_request_bytes
        try:
            async with asyncio.timeout(min(BODY_TIMEOUT, service.limits.request_timeout)):
                body = await read(receive, scope, limit)
        except TimeoutError:
            await passage.refuse(408, "The body of the request did not arrive in time.", CLOSE)
            return
        if body is None:
            visit.outcome = "disconnected"
        elif len(body) > limit:
            await passage.refuse(413, f"The body of the request has more than {limit:,} bytes.", CLOSE)
        else:
            await self._run(scope, body, receive, passage)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, passage: Passage) -> None:
        """The routes, as long as the client is there and time is left."""
        left = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.Event()

        async def replay() -> Message:
            if left:
                return left.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        work = asyncio.ensure_future(self.app(scope, replay, passage.send))
        watch = asyncio.ensure_future(until_disconnected(receive))
        try:
            time_left = self.service.limits.request_timeout - passage.visit.seconds
            await asyncio.wait({work, watch}, timeout=time_left, return_when=asyncio.FIRST_COMPLETED)
            if work.done() or passage.is_complete:
                await work
            elif watch.done():
                passage.visit.outcome = "disconnected"
                gone.set()
                await end(work)
            else:
                await end(work)
                await passage.time_out(self.service.limits.request_timeout)
        finally:
            await end(work)
            await end(watch)


class Passage:
    """The way of a response out.

    Args:
        visit: notes its status.
        send: of the server.

    Attributes:
        is_complete: whether its last byte was sent.
    """

    def __init__(self, visit: Visit, send: Send):
        self.visit, self._send = visit, send
        self.is_complete, self._is_stream = False, False

    async def send(self, message: Message) -> None:
        """Send a part of it."""
        if message["type"] == "http.response.start":
            self.visit.status = message["status"]
            if message["status"] >= 400:
                self.visit.outcome = "failed" if message["status"] >= 500 else "refused"
            headers = dict(message["headers"])
            self._is_stream = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            self.visit.request_id = headers.get(b"x-request-id", b"").decode("latin-1") or None
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.is_complete = True

    async def refuse(self, status: int, message: str, headers: dict[str, str]) -> None:
        """An error instead of an answer."""
        response = error_response(status, message, headers)
        await response({"type": "http"}, None, self.send)

    async def time_out(self, seconds: float) -> None:
        """The end of a request that took too long: an error, or the last event of a stream."""
        message = f"The request took longer than {seconds:g} seconds."
        if self.visit.status is None:
            await self.refuse(504, message, CLOSE)
        elif self._is_stream and not self.is_complete:
            event = as_event(error_body(message, "timeout"))
            await self.send({"type": "http.response.body", "body": event.encode(), "more_body": False})
        self.visit.outcome = "timeout"


async def read(receive: Receive, scope: Scope, limit: int) -> bytes | None:
    """The body of a request, or its beginning if it is longer than the limit; None if the client has gone."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        return b" " * (limit + 1)
    body = bytearray()
    while len(body) <= limit:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return bytes(body)


async def until_disconnected(receive: Receive) -> None:
    """Wait until the client has gone, or its response is complete."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def end(task: asyncio.Future) -> None:
    """Cancel a task and wait for it; its errors have been seen, or nobody wants them."""
    if not task.done():
        task.cancel()
        with suppress(BaseException):
            await task

"""Where results wait for the callers who want them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Condition

from ..compat.continuous_batching import GenerationOutput


class Outputs:
    """Results on their way from the decoding thread to its callers.

    A result goes to the handler of its request, if there is one, and otherwise into one queue, from which callers take
    the next, or the next of one request.
    """

    def __init__(self):
        self._arrived = Condition()
        self._queue: deque[GenerationOutput] = deque()
        self._handlers: dict[str, tuple[Callable[[GenerationOutput], None], asyncio.AbstractEventLoop]] = {}
        self._is_closed = True

    def open(self) -> None:
        """Results may come."""
        with self._arrived:
            self._is_closed = False

    def close(self) -> None:
        """No more results come: nobody waits any longer."""
        with self._arrived:
            self._is_closed = True
            self._arrived.notify_all()

    def deliver(self, output: GenerationOutput) -> None:
        """Hand over a result; called on the decoding thread."""
        with self._arrived:
            handler = self._handlers.get(output.request_id)
            if handler is None:
                self._queue.append(output)
                self._arrived.notify_all()
                return
            if output.is_finished():
                del self._handlers[output.request_id]
        callback, loop = handler
        with suppress(RuntimeError):  # the event loop is closed: nobody listens any more
            loop.call_soon_threadsafe(callback, output)

    def take(self, request_id: str | None, timeout: float | None) -> GenerationOutput | None:
        """The next result, of any request or of one; None after `timeout` seconds or if no more come."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._arrived:
            while True:
                for output in self._queue:
                    if request_id in (None, output.request_id):
                        self._queue.remove(output)
                        return output
                left = None if deadline is None else deadline - time.monotonic()
                if self._is_closed or (left is not None and left <= 0):
                    return None
                self._arrived.wait(left)

    def handle(
        self, request_id: str, callback: Callable[[GenerationOutput], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """Call back on an event loop for every result of a request, those that are there already too."""
        with self._arrived:
            mine = [output for output in self._queue if output.request_id == request_id]
            for output in mine:
                self._queue.remove(output)
            if not (mine and mine[-1].is_finished()):
                self._handlers[request_id] = callback, loop
        for output in mine:
            loop.call_soon_threadsafe(callback, output)

"""One HTTP request from its arrival to its end."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Visit:
    """What is known of an HTTP request; of its text only how long it is.

    Attributes:
        method, path: of the request.
        outcome: "finished", "refused", "failed", "timeout" or "disconnected".
        status: of the response; None while there is none.
        request_ids: of the requests that the engine decodes for it.
        prompt_tokens, completion_tokens: so far, of all its choices.
        first_token: seconds from its arrival to its first token; None without one.
        started: `time.perf_counter()` at its arrival.
    """

    method: str
    path: str
    outcome: str = "finished"
    status: int | None = None
    request_id: str | None = None
    request_ids: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token: float | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since its arrival."""
        return time.perf_counter() - self.started

    def note_first_token(self, at: float) -> None:
        """Note when a token came, as `time.perf_counter()`; the first of all choices counts."""
        seconds = at - self.started
        self.first_token = seconds if self.first_token is None else min(seconds, self.first_token)

    def to_dict(self) -> dict[str, Any]:
        """What the log says of it."""
        first = None if self.first_token is None else round(self.first_token, 4)
        return {
            "request_id": self.request_id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "outcome": self.outcome,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_seconds": first,
            "seconds": round(self.seconds, 4),
        }


VISIT: ContextVar[Visit] = ContextVar("VISIT")
"""The HTTP request being handled."""

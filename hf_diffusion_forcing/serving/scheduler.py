"""Who may join, and when: first come, first served, within three limits."""

from __future__ import annotations

import queue
from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Demand(Protocol):
    """What the scheduler asks of a request."""

    id: str


Waiting = TypeVar("Waiting", bound=Demand)


@dataclass
class Limits:
    """The limits of admission.

    Attributes:
        rows: rows at a time, in all groups together.
        positions: of one pass, which covers the rows of one group; a single row may always be wider. None is not
            known yet: the owner sets it before a second row would join a group.
        cache_bytes: of the keys and values of all groups; None is no limit.
        queue: requests that may wait; 0 is no limit.
        keeps_prefixes: whether seats keep what rows leave behind, for prompts that begin alike.
    """

    rows: int
    positions: int | None = None
    cache_bytes: int | None = None
    queue: int = 0
    keeps_prefixes: bool = True


@dataclass(frozen=True)
class Load:
    """What the machine would carry if a request joined.

    Attributes:
        rows: in all groups.
        positions: of the widest pass of its group.
        group_rows: rows of its group.
        cache_bytes: of all groups, at their longest.
    """

    rows: int
    positions: int
    group_rows: int
    cache_bytes: int


class Scheduler(Generic[Waiting]):
    """The queue. The first in it joins as soon as it fits; nobody overtakes it, so nobody waits forever.

    Args:
        limits: of admission.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.waiting: deque[Waiting] = deque()

    def add(self, request: Waiting) -> None:
        """Put a request at the end of the queue.

        Raises:
            queue.Full: as many requests wait as may.
        """
        if self.limits.queue and len(self.waiting) >= self.limits.queue:
            raise queue.Full(
                f"{len(self.waiting)} requests are waiting, the most that max_queue_size={self.limits.queue} allows: "
                "add the request later, or raise max_queue_size."
            )
        self.waiting.append(request)

    def remove(self, request_id: str) -> Waiting | None:
        """Take a request out of the queue; None if it does not wait there."""
        for request in self.waiting:
            if request.id == request_id:
                self.waiting.remove(request)
                return request
        return None

    def has_room(self, load: Load) -> bool:
        """Whether the rows and the positions of a load are within the limits."""
        if load.rows > self.limits.rows:
            return False
        return load.group_rows == 1 or load.positions <= self.limits.positions

    def has_memory(self, load: Load) -> bool:
        """Whether its keys and values are."""
        return self.limits.cache_bytes is None or load.cache_bytes <= self.limits.cache_bytes

"""The requests of all groups, turn by turn, on the thread of the caller."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from functools import cached_property

import torch

from ..generation.forward_context import autocast_of_forward, warn_about_hooks
from ..models.interface import RecurrentDepthInterface
from .budget import entry_bytes, positions_of
from .group import Group, unread
from .request import Request
from .scheduler import Limits, Load, Scheduler
from .statistics import BatchingStats


class Engine:
    """Admits requests and gives the groups their turns: the one with the least work so far is next.

    Args:
        model: implements `RecurrentDepthInterface`.
        limits: of admission; `positions=None` is chosen from the machine's cost curve when it is first needed.
        stats: counts what is done; new ones when None.

    Attributes:
        groups: those that have rows, or seats that are kept for their prefixes.
        device: of the ids.
    """

    def __init__(self, model: RecurrentDepthInterface, limits: Limits, stats: BatchingStats | None = None):
        self.model, self.limits = model, limits
        self.stats = BatchingStats() if stats is None else stats
        self.scheduler: Scheduler[Request] = Scheduler(limits)
        self.groups: list[Group] = []
        self.device = torch.device("cpu") if model.device.type == "meta" else model.device

    @cached_property
    def entries(self) -> list[int]:
        """Bytes of an entry in each layer of a cache."""
        return entry_bytes(self.model, self.device)

    @cached_property
    def autocast(self) -> AbstractContextManager:
        return autocast_of_forward(self.model, self.device)

    @property
    def has_work(self) -> bool:
        return bool(self.scheduler.waiting) or any(group.members for group in self.groups)

    @property
    def cache_bytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(group.cache.nbytes for group in self.groups)

    @property
    def members(self) -> list[Request]:
        """The requests that are being read or decoded."""
        return [request for group in self.groups for request in group.members]

    def add(self, request: Request) -> None:
        """Let a request wait for its turn.

        Raises:
            ValueError: its keys and values alone would be more than the limit.
            queue.Full: too many wait already.
        """
        limit = self.limits.cache_bytes
        needed = self._group(request).cache_bytes(request)
        if limit is not None and needed > limit:
            raise ValueError(
                f"Request {request.id} needs {needed:,} bytes of keys and values for up to {request.positions} "
                f"positions, more than max_cache_bytes={limit:,}: lower max_new_tokens, shorten the prompt, or raise "
                "max_cache_bytes."
            )
        self.scheduler.add(request)

    def cancel(self, request_id: str) -> Request | None:
        """Take out a request, wherever it is; None if it is not here."""
        if (request := self.scheduler.remove(request_id)) is not None:
            return request
        for group in self.groups:
            for request in group.members:
                if request.id == request_id:
                    group.cancel(request)
                    self._drop_empty()
                    return request
        return None

    def free(self) -> None:
        """Give back all memory; there must be no requests."""
        self.groups = []

    @torch.no_grad()
    def turn(self) -> list[Request]:
        """Give one group its turn; the requests that have ended."""
        busy = [group for group in self.groups if group.members]
        if not busy:
            return []
        group = min(busy, key=lambda each: each.work)
        # A prompt that nobody waits for is read one recurrence a turn, without measuring the machine.
        is_beside = bool(group.requests) and len(group.requests) < len(group.members)
        before, reused = copy.copy(group.stats), group.reused
        with self.autocast:
            over = group.turn(self._positions() if is_beside else 0)
        self.stats.add(group.stats, before)
        self.stats.reused_positions += group.reused - reused
        self._drop_empty()
        return over

    def _positions(self) -> int:
        if self.limits.positions is None:
            self.limits.positions = positions_of(self.model, self.device)
        return self.limits.positions

    def admit(self) -> None:
        """Let the first of the queue join, as long as it fits."""
        while self.scheduler.waiting:
            request = self.scheduler.waiting[0]
            group = next((each for each in self.groups if each.takes(request)), None)
            load = self._load(group, request)
            if load.group_rows > 1:
                self._positions()
            if not self.scheduler.has_room(load):
                return
            while not self.scheduler.has_memory(load):
                if not self._forget_oldest():
                    return
                load = self._load(group, request)
            self.scheduler.waiting.popleft()
            self.stats.prompt_positions += unread(request)
            if group not in self.groups:
                group = self._new_group(request)
            # One that comes back has as much work behind it as the others, so that it does not keep them waiting.
            busy = [each.work for each in self.groups if each.members]
            if not group.members and busy:
                group.work = max(group.work, min(busy))
            group.add(request)

    def _forget_oldest(self) -> bool:
        """Free the seat that was kept for its prefix and was of use longest ago; False if there is none."""
        kept = [
            (used, number, row)
            for number, group in enumerate(self.groups)
            if not group.is_reading
            for row, used in group.kept.items()
        ]
        if not kept:
            return False
        _, number, row = min(kept, key=lambda each: each[:2])
        self.groups[number].forget(row)
        self._drop_empty()
        return True

    def _load(self, group: Group | None, request: Request) -> Load:
        """What there would be to carry if a request joined a group, or a new one."""
        rows = len(self.members) + 1
        others = sum(each.cache_bytes() for each in self.groups if each is not group)
        fresh = group if group in self.groups else self._group(request)
        group_rows = len(fresh.members) + 1
        return Load(rows, round(group_rows * fresh.width), group_rows, others + fresh.cache_bytes(request))

    def _new_group(self, request: Request) -> Group:
        warn_about_hooks(self.model, request.settings.config.sampler)
        group = self._group(request)
        self.groups.append(group)
        return group

    def _group(self, request: Request) -> Group:
        seats = self.limits.rows if self.limits.keeps_prefixes else 0
        return Group(self.model, request, self.entries, seats)

    def _drop_empty(self) -> None:
        self.groups = [group for group in self.groups if group.members or group.kept]

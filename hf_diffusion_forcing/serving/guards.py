"""What a caller passes with a request, so that an error in it ends that request alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from transformers.generation.streamers import BaseStreamer

from ..generation.choice import Prefix, TokenChoice
from ..generation.stopping import Stopping


class Fails(Protocol):
    """A request: keeps the first error, with which the loop ends it."""

    error: Exception | None

    def fail(self, error: Exception) -> None: ...


class GuardedChoice(TokenChoice):
    """A `TokenChoice` whose processors may raise: from then on it chooses greedily, for a row that is about to end."""

    def __init__(self, choice: TokenChoice, owner: Fails):
        self.__dict__.update(vars(choice))
        self.owner = owner

    def __call__(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor,
        prefixes: list[Prefix],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.owner.error is None:
            try:
                return super().__call__(logits, tokens, positions, seeds, prefixes)
            except Exception as error:  # a processor may raise anything
                self.owner.fail(error)
        return logits.argmax(-1).to(positions.device), logits

    def choose_final(
        self, row: int, ids: list[int], position: int, seed: int, logits: torch.Tensor
    ) -> tuple[int, torch.Tensor]:
        if self.owner.error is None:
            try:
                return super().choose_final(row, ids, position, seed, logits)
            except Exception as error:  # a processor may raise anything
                self.owner.fail(error)
        return int(logits.argmax()), logits


class GuardedStopping(Stopping):
    """A `Stopping` whose criteria may raise: the row then ends."""

    def __init__(self, stopping: Stopping, owner: Fails):
        self.__dict__.update(vars(stopping))
        self.owner = owner

    def has_ended(self, ids: list[int], scores: Iterable[torch.Tensor] | None) -> bool:
        if self.owner.error is None:
            try:
                return super().has_ended(ids, scores)
            except Exception as error:  # a criterion may raise anything
                self.owner.fail(error)
        return True


class GuardedStreamer(BaseStreamer):
    """A streamer that may raise; after the request's first error it gets nothing more."""

    def __init__(self, streamer: BaseStreamer, owner: Fails):
        self.streamer, self.owner = streamer, owner
        self.shows_drafts = hasattr(streamer, "put_draft")

    def _call(self, method: str, *arguments: torch.Tensor) -> None:
        if self.owner.error is None:
            try:
                getattr(self.streamer, method)(*arguments)
            except Exception as error:  # a streamer may raise anything
                self.owner.fail(error)

    def put(self, value: torch.Tensor) -> None:
        self._call("put", value)

    def put_draft(self, value: torch.Tensor) -> None:
        if self.shows_drafts:
            self._call("put_draft", value)

    def end(self) -> None:
        self._call("end")

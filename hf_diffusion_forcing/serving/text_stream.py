"""Tokens in, pieces of text out."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from ..compat.serving import StreamError, response_events_to_chunks


class StopCut:
    """Ends a text before its first stop string. Text that may be the beginning of one is held back.

    Args:
        stops: the strings.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops, self.is_over, self._held = stops, False, ""

    def feed(self, text: str) -> str:
        """The text that can be shown once this one has come."""
        if self.is_over:
            return ""
        text = self._held + text
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            self.is_over, self._held = True, ""
            return text[: min(ends)]
        held = max(
            (size for stop in self.stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        rest, self._held = self._held, ""
        return rest

    def of(self, text: str) -> str:
        """A whole text, cut."""
        return self.feed(text) + self.rest()


class TextStream:
    """Decodes committed tokens to the items that transformers' handlers stream.

    Args:
        cancel: called when the reader has gone.
        tokenizer: the Rust tokenizer.
        stops: the text ends before the first of them.
        response_parser: transformers' own, which tells tool calls and thoughts apart from text; then nothing is cut.

    Attributes:
        queue: of the items: texts, and at last None or an error.
        total_tokens: so far.
        tokens_of: the numbers of the tokens that each item stands for; the last entry is of those without text.
    """

    def __init__(
        self,
        cancel: Callable[[], None],
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        response_parser: Any = None,
    ):
        self.cancel, self.queue = cancel, asyncio.Queue()
        self.total_tokens = 0
        self.tokens_of: deque[list[int]] = deque()
        self._tokenizer, self._parser = tokenizer, response_parser
        self._decoder = DecodeStream([], skip_special_tokens=response_parser is None)
        self._cut = StopCut(stops)
        self._silent: list[int] = []
        if response_parser is not None:
            self._put(response_events_to_chunks(response_parser.initial_events))

    def feed(self, tokens: Iterable[int]) -> None:
        """Take new tokens; their texts become one item."""
        texts = []
        for token in tokens:
            self._silent.append(self.total_tokens)
            self.total_tokens += 1
            texts.append(self._decoder.step(self._tokenizer, token) or "")
        text = "".join(texts)
        if text and self._parser is None:
            self._put(filter(None, [self._cut.feed(text)]))
        elif text:
            self._put(response_events_to_chunks(self._parser.feed(text)))

    def end(self, error: str | None = None) -> None:
        """The text is complete, or ends by an error."""
        if error is not None:
            self.queue.put_nowait(StreamError(error))
            return
        if self._parser is None:
            self._put(filter(None, [self._cut.rest()]))
        else:
            try:
                events = self._parser.finalize()[1]
            except (ValueError, RuntimeError):
                events = []  # it stopped inside a tool call, so there is none
            self._put(response_events_to_chunks(events))
        self.tokens_of.append(self._silent)
        self.queue.put_nowait(None)

    def _put(self, items: Iterable[Any]) -> None:
        for item in items:
            self.tokens_of.append(self._silent)
            self._silent = []
            self.queue.put_nowait(item)

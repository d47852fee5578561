"""Decodes rows of a dataset on the engine of continuous batching, several at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from transformers import ContinuousBatchingConfig, PreTrainedTokenizerBase

from ..compat.continuous_batching import GenerationOutput
from ..serving.manager import NOT_SETTINGS, ContinuousBatchingManager
from ..serving.mixin import MAX_BATCH_SIZE, ContinuousGenerationMixin
from ..serving.request import prepare
from ..serving.statistics import BatchingStats
from ..settings.generation_config import RecurrentDepthGenerationConfig
from .prompts import Prompts

AHEAD = 2
"""Rows in the engine, or waiting for it, for every row that it can decode at a time."""


@dataclass
class RowDecoder:
    """Keeps the engine busy with rows, and makes a record of each.

    A record has JSON values: `row` (its number), `text`, `tokens` (how many, with the end token), `finish_reason`
    ("stop", "length" or "error"), `error` (None, or why the row has no text), `seed`, and `logprobs` if asked for.

    Attributes:
        model, tokenizer: decode.
        rows: the dataset.
        prompts: makes a row's prompt.
        keywords: of `generate()`, for every row, without the seed.
        seed: row i is decoded with seed + i, or every row with it if `same_seed`.
        keeps_logprobs: whether records have them.
        limits: keywords of `init_continuous_batching()`.
        stats: what the engine has done in the last call of `records`.
    """

    model: ContinuousGenerationMixin
    tokenizer: PreTrainedTokenizerBase
    rows: Dataset
    prompts: Prompts
    keywords: dict[str, Any]
    seed: int = 0
    same_seed: bool = False
    keeps_logprobs: bool = False
    limits: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        self.stats = BatchingStats()
        self._sources = self.rows.select_columns(self.prompts.columns)
        if "stop_strings" in self.keywords:
            self.keywords = self.keywords | {"tokenizer": self.tokenizer}

    @cached_property
    def settings(self) -> RecurrentDepthGenerationConfig:
        """What the keywords come to, with every default filled in; TypeError or ValueError if they are wrong."""
        named = {name: value for name, value in self.keywords.items() if name not in NOT_SETTINGS}
        return self.model.decoding_config(**named)

    def check(self) -> None:
        """TypeError or ValueError for keywords with which no row could be decoded."""
        prepare(self.model, [0], None, self.keywords | {"seed": self.seed})
        self._manager()

    def _manager(self) -> ContinuousBatchingManager:
        config = ContinuousBatchingConfig(return_logprobs=self.keeps_logprobs)
        return self.model.init_continuous_batching(
            continuous_batching_config=config, **{"max_queue_size": 0} | self.limits
        )

    def seed_of(self, number: int) -> int:
        return self.seed if self.same_seed else self.seed + number

    def records(self, numbers: Iterable[int]) -> Iterator[list[dict[str, Any]]]:
        """The records of rows as they end, those that are there at a time together.

        Raises:
            RuntimeError: the engine has ended by an error.
        """
        left, ahead = iter(numbers), AHEAD * (self.limits.get("max_batch_size") or MAX_BATCH_SIZE)
        manager, inside, is_over = self._manager(), 0, False
        self.stats = manager.stats
        manager.start()
        try:
            while inside or not is_over:
                over: list[dict[str, Any]] = []
                while inside + len(over) < ahead and not is_over:
                    number = next(left, None)
                    is_over = number is None
                    if number is not None and (failed := self._add(manager, number)) is not None:
                        over.append(failed)
                    elif number is not None:
                        inside += 1
                # What has failed already does not wait for the others.
                results = self._results(manager, 0 if over or not inside else None)
                inside -= len(results)
                if over := over + [self._record(result) for result in results]:
                    yield over
        finally:
            manager.destroy()

    def _add(self, manager: ContinuousBatchingManager, number: int) -> dict[str, Any] | None:
        """Add a row to the engine, or return the record of one that cannot be decoded."""
        try:
            inputs = self.prompts.inputs(self._sources[number], self.tokenizer)
            ids, others = inputs.pop("input_ids"), {name: torch.tensor([each]) for name, each in inputs.items()}
            manager.add_request(ids, str(number), **self.keywords, **others, seed=self.seed_of(number))
        except (ValueError, TypeError) as error:
            return self._failed(number, str(error))
        return None

    def _results(self, manager: ContinuousBatchingManager, timeout: float | None) -> list[GenerationOutput]:
        """All results that are there, after waiting for the first."""
        results = []
        while (result := manager.get_result(timeout=timeout)) is not None:
            results.append(result)
            timeout = 0
        if timeout is None:
            raise RuntimeError("The decoding thread has ended before the rows: see the log for its error.")
        return results

    def _failed(self, number: int, error: str) -> dict[str, Any]:
        record = {"row": number, "text": None, "tokens": 0, "finish_reason": "error"}
        record |= {"error": f"Row {number}: {error}", "seed": self.seed_of(number)}
        return record | ({"logprobs": None} if self.keeps_logprobs else {})

    def _record(self, result: GenerationOutput) -> dict[str, Any]:
        number, tokens = int(result.request_id), result.generated_tokens
        if result.error is not None:
            return self._failed(number, result.error)
        record = {
            "row": number,
            "text": self.tokenizer.decode(tokens, skip_special_tokens=True),
            "tokens": len(tokens),
            "finish_reason": self._finish_reason(tokens),
            "error": None,
            "seed": self.seed_of(number),
        }
        return record | ({"logprobs": result.logprobs} if self.keeps_logprobs else {})

    def _finish_reason(self, tokens: list[int]) -> str:
        """ "length" where only the limit has ended a row, as OpenAI's API has it."""
        if len(tokens) < self.settings.max_new_tokens:
            return "stop"
        stops, ends = self.settings.stop_strings or [], self.settings.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        text = self.tokenizer.decode(tokens)
        has_stopped = tokens[-1] in ends or any(stop in text for stop in ([stops] if isinstance(stops, str) else stops))
        return "stop" if has_stopped else "length"

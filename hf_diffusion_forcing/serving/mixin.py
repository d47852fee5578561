"""`generate_batch()` and its kin, as methods of the models."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from tqdm.auto import tqdm
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.utils import logging

from ..compat.continuous_batching import GenerationOutput
from ..generation.mixin import RecurrentDepthGenerationMixin
from ..settings.validation import check_flag, check_integer
from .budget import free_cache_bytes
from .manager import ContinuousBatchingManager, names_of
from .scheduler import Limits

logger = logging.get_logger(__name__)

MAX_BATCH_SIZE = 32
"""Rows at a time, by default."""

MAX_QUEUE_SIZE = 1024
"""Requests that may wait, by default."""

LIMITS = ("max_batch_size", "max_batch_tokens", "max_cache_bytes", "max_queue_size", "prefix_reuse")
"""The keywords that are not those of a request."""

TAKEN = (
    "max_batch_tokens",
    "max_requests_per_batch",
    "max_queue_size",
    "allow_block_sharing",
    "return_logprobs",
    "seed",
    "scheduler_type",
)
"""The fields of transformers' `ContinuousBatchingConfig` that mean something here; the others are about its pages."""


class ContinuousGenerationMixin(RecurrentDepthGenerationMixin):
    """`RecurrentDepthGenerationMixin` with continuous batching: requests join and leave between ticks.

    The names are those of transformers' `ContinuousMixin`. Instead of its paged attention, the rows tick in this
    package's own loop, so every sampler works, and each text is the one that `generate()` returns for the prompt alone.
    """

    _manager: ContinuousBatchingManager | None = None

    def init_continuous_batching(
        self,
        generation_config: GenerationConfig | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        workload_hints: Any = None,
        *,
        max_batch_size: int | None = None,
        max_batch_tokens: int | str = "auto",
        max_cache_bytes: int | str | None = "auto",
        max_queue_size: int | None = None,
        prefix_reuse: bool = True,
        **keywords: Any,
    ) -> ContinuousBatchingManager:
        """A manager that decodes requests as they come; `start()` it, or use it as
        `continuous_batching_context_manager`.

        Args:
            generation_config: for requests that bring none; the model's own when None.
            continuous_batching_config: transformers' own; only the fields that are not about pages may be set.
            workload_hints: not needed here.
            max_batch_size: rows at a time; 32 when None.
            max_batch_tokens: positions of one pass. "auto" is at least 64, and as many as make a position nearly as
                cheap as it gets on this machine, measured once for a model on a machine, then kept, when two rows
                first meet.
            max_cache_bytes: bytes of keys and values of all rows at their longest. "auto" is half of the free memory;
                None is no limit.
            max_queue_size: requests that may wait; 1024 when None, 0 for no limit.
            prefix_reuse: keep the keys and values of rows that have ended, and begin prompts with those of rows that
                began alike. No text changes.
            keywords: of `generate()`, for every request; a request's own override them.

        Raises:
            TypeError, ValueError: a limit is wrong, or a field of the config means nothing here.
        """
        if self._manager is not None:
            return self._manager
        taken, passed = taken_from(continuous_batching_config), {}
        for name, value in (("max_batch_size", max_batch_size), ("max_queue_size", max_queue_size)):
            passed[name] = taken.get(name) if value is None else value
        if max_batch_tokens == "auto":
            max_batch_tokens = taken.get("max_batch_tokens") or "auto"
        if "seed" in taken:
            keywords = {"seed": taken["seed"]} | keywords
        limits = self._limits(
            MAX_BATCH_SIZE if passed["max_batch_size"] is None else passed["max_batch_size"],
            max_batch_tokens,
            max_cache_bytes,
            MAX_QUEUE_SIZE if passed["max_queue_size"] is None else passed["max_queue_size"],
        )
        check_flag("prefix_reuse", prefix_reuse)
        limits.keeps_prefixes = prefix_reuse and taken.get("allow_block_sharing", True)
        return ContinuousBatchingManager(self, generation_config, limits, taken.get("return_logprobs", False), keywords)

    def _limits(self, rows: int, positions: int | str, cache_bytes: int | str | None, waiting: int) -> Limits:
        """The checked limits, with the free memory filled in."""
        check_integer("max_batch_size", rows, 1)
        check_integer("max_queue_size", waiting, 0)
        if positions != "auto":
            check_integer("max_batch_tokens", positions, 1)
        if cache_bytes == "auto":
            cache_bytes = free_cache_bytes(self.device)
        elif cache_bytes is not None:
            check_integer("max_cache_bytes", cache_bytes, 1)
        return Limits(rows, None if positions == "auto" else positions, cache_bytes, waiting)

    def destroy_cached_continuous_batching_manager(self) -> None:
        """Stop the manager that `persistent_manager=True` has kept, and free its memory."""
        if self._manager is not None:
            self._manager.destroy()
            self._manager = None

    @contextmanager
    def continuous_batching_context_manager(
        self,
        generation_config: GenerationConfig | None = None,
        block: bool = True,
        timeout: float | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        persistent_manager: bool = False,
        warmup: bool = True,
        workload_hints: Any = None,
        **keywords: Any,
    ) -> Iterator[ContinuousBatchingManager]:
        """A running manager; it stops with the context, after the last request or at once if the block raises.

        Args:
            block, timeout: wait for the thread to stop, `timeout` seconds at most.
            persistent_manager: keep the manager on the model for the next time.
            warmup: not needed here.
            generation_config, continuous_batching_config, workload_hints, keywords: of `init_continuous_batching()`.
        """
        manager = self.init_continuous_batching(
            generation_config, continuous_batching_config, workload_hints, **keywords
        )
        if persistent_manager:
            self._manager = manager
        manager.start()
        try:
            yield manager
        except BaseException:
            manager.stop(block, timeout, persistent_manager, hard_stop=True)
            raise
        manager.stop(block, timeout, persistent_manager)

    def generate_batch(
        self,
        inputs: Sequence[Sequence[int]],
        generation_config: GenerationConfig | None = None,
        continuous_batching_config: ContinuousBatchingConfig | None = None,
        record_timestamps: bool = False,
        progress_bar: bool = False,
        persistent_manager: bool = False,
        warmup: bool = True,
        **keywords: Any,
    ) -> dict[str, GenerationOutput]:
        """Decode many prompts of any lengths; as one ends, the next takes its place.

        Args:
            inputs: the prompts' ids, without padding.
            generation_config: for all of them; the model's own when None.
            continuous_batching_config: transformers' own.
            record_timestamps: keep the time of every token.
            progress_bar: show one.
            persistent_manager: keep the manager for the next time.
            warmup: not needed here.
            keywords: of `generate()`, such as `sampler`, `seed` and `max_new_tokens`, and the limits of
                `init_continuous_batching()`.

        Returns:
            The results by request id, in the order of the prompts. A failed one has an `error`.

        Raises:
            TypeError, ValueError: as `generate()`, for any of the prompts; then nothing was decoded to the end.
        """
        if not len(inputs):
            return {}
        limits = {name: keywords.pop(name) for name in LIMITS if name in keywords}
        if keywords.get("cache_implementation") == "paged":
            # generate() comes here with it and with all that it was called with.
            keywords = {name: keywords[name] for name in keywords.keys() - {"cache_implementation", "input_ids"}}
        if getattr(generation_config, "cache_implementation", None) == "paged":
            generation_config = copy.copy(generation_config)
            generation_config.cache_implementation = None
        manager_context = self.continuous_batching_context_manager(
            generation_config,
            continuous_batching_config=continuous_batching_config,
            persistent_manager=persistent_manager,
            **{"max_queue_size": 0} | limits,
        )
        results: dict[str, GenerationOutput] = {}
        with manager_context as manager:
            ids = manager.add_requests(inputs, record_timestamps=record_timestamps, **keywords)
            names = [name for each in ids for name in names_of(each, manager.settings(**keywords))]
            for name in tqdm(names, desc="Decoding", unit="request") if progress_bar else names:
                if (result := manager.get_result(name)) is None:
                    raise RuntimeError("The decoding thread has ended before the requests: see the log for its error.")
                results[name] = result
        failed = [name for name, result in results.items() if result.error is not None]
        if failed:
            logger.error(f"Requests {failed} failed; {failed[0]}: {results[failed[0]].error}")
        return results


def taken_from(config: ContinuousBatchingConfig | None) -> dict[str, Any]:
    """What transformers' config says that means something here, under our names.

    Raises:
        ValueError: another field is not at its default.
    """
    if config is None:
        return {}
    default, taken = ContinuousBatchingConfig(), {}
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if value == getattr(default, name):
            continue
        if name not in TAKEN or (name == "scheduler_type" and value != "fifo"):
            raise ValueError(
                f"continuous_batching_config has {name}={value!r}, which means nothing without transformers' pages: "
                f"leave it out. Of its fields, these do: {', '.join(TAKEN)}."
            )
        taken[{"max_requests_per_batch": "max_batch_size"}.get(name, name)] = value
    return taken

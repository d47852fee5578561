"""Continuous batching on a thread of its own, under the names that transformers' users know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from threading import Condition, Thread, current_thread
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.utils import logging

from ..compat.continuous_batching import GenerationOutput
from ..generation.mixin import RecurrentDepthGenerationMixin
from ..generation.processors import kind_of, one_per_row
from ..randomness import row_seeds
from ..settings.generation_config import RecurrentDepthGenerationConfig
from .engine import Engine
from .openmp import release_threads
from .outputs import Outputs
from .request import Request, prepare, request_of
from .scheduler import Limits
from .statistics import BatchingLoad, BatchingStats

logger = logging.get_logger(__name__)

NOT_SETTINGS = {*signature(GenerationMixin.generate).parameters, "tokenizer", "assistant_tokenizer", "attention_mask"}
"""Keywords of `generate()` that are not part of a generation config."""


class ContinuousBatchingManager:
    """Decodes requests as they come; made by `init_continuous_batching()`.

    Requests join and leave between ticks. Each is decoded by the sampler that its generation config and keywords say,
    as `generate()` would decode it alone: the text is the same, whatever else is being decoded.

    Args:
        model: decodes.
        generation_config: for requests that bring none; the model's own when None.
        limits: of admission.
        return_logprobs: whether results have the logarithm of each token's probability.
        keywords: of `generate()`, for every request; a request's own override them.
    """

    def __init__(
        self,
        model: RecurrentDepthGenerationMixin,
        generation_config: GenerationConfig | None,
        limits: Limits,
        return_logprobs: bool = False,
        keywords: dict[str, Any] | None = None,
    ):
        self.model, self.generation_config, self.limits = model, generation_config, limits
        self.return_logprobs, self.keywords = return_logprobs, keywords or {}
        self.stats = BatchingStats()
        self._engine: Engine | None = None
        self._outputs = Outputs()
        self._changed = Condition()
        """Guards everything below, and the engine's queue; notified of every change."""
        self._thread: Thread | None = None
        self._requests: dict[str, Request] = {}
        self._cancelled: list[str] = []
        self._counted = 0
        self._pauses = 0
        self._is_resting = False
        self._stops: str | None = None
        """How to stop: "after the last request", "now", or not at all."""
        self._keeps_cache = False

    @property
    def load(self) -> BatchingLoad:
        """What there is to carry now."""
        with self._changed:
            if self._engine is None:
                return BatchingLoad()
            waiting = len(self._engine.scheduler.waiting)
            return BatchingLoad(waiting, len(self._requests) - waiting, self._engine.cache_bytes)

    # --- the thread ---

    def is_running(self) -> bool:
        """Whether the decoding thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Start the decoding thread."""
        if self.is_running():
            logger.warning("The manager is already running.")
            return
        with self._changed:
            self._stops, self._engine = None, self._engine or Engine(self.model, self.limits, self.stats)
            self._outputs.open()
            inference = torch.is_inference_mode_enabled()
            self._thread = Thread(target=self._run, args=(inference,), name="continuous-batching", daemon=True)
            self._thread.start()

    def stop(
        self,
        block: bool = True,
        timeout: float | None = None,
        keep_for_next_session: bool = False,
        hard_stop: bool = False,
    ) -> None:
        """Stop the thread once all requests have ended.

        Args:
            block: wait for it.
            timeout: seconds to wait at most; None waits as long as it takes.
            keep_for_next_session: keep what the cache holds for the next `start()`.
            hard_stop: fail the requests that are there instead of finishing them.

        Raises:
            RuntimeError: inside `pause()`, where it would wait forever.
        """
        if self._thread is None:
            return
        with self._changed:
            if self._pauses:
                raise RuntimeError("stop() inside pause() would wait forever: leave the pause first.")
            if self._stops != "now":
                self._stops = "now" if hard_stop else "after the last request"
            self._keeps_cache = keep_for_next_session
            self._changed.notify_all()
        if block:
            self.join(timeout=timeout)

    def join(self, stop_trigger_time: float | None = None, timeout: float | None = None) -> None:
        """Wait for the thread to end, `timeout` seconds at most."""
        if self._thread is None or self._thread is current_thread():
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            logger.warning(f"The decoding thread is still busy after {timeout} seconds.")
        else:
            self._thread = None

    def destroy(self) -> None:
        """Stop, and free everything."""
        self.stop(hard_stop=True)
        self._engine = None

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Within the context nothing is decoded, so that the model may be changed; nothing is lost.

        Raises:
            RuntimeError: the manager does not run.
        """
        if not self.is_running():
            raise RuntimeError("The manager does not run: call start() before pause().")
        with self._changed:
            self._pauses += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_resting or not self.is_running())
        try:
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    # --- requests ---

    def add_request(
        self,
        input_ids: Sequence[int] | torch.Tensor,
        request_id: str | None = None,
        max_new_tokens: int | None = None,
        streaming: bool = False,
        record_timestamps: bool = False,
        eos_token_id: int | list[int] | None = None,
        generation_config: GenerationConfig | None = None,
        return_logprobs: bool | None = None,
        **keywords: Any,
    ) -> str:
        """Add a request; it waits until there is room. The calling thread ends its OpenMP threads (`release_threads`).

        Args:
            input_ids: the prompt's ids.
            request_id: its name; counted when None.
            streaming: deliver a result after every tick that commits tokens, not only at the end.
            record_timestamps: keep the time of every token.
            max_new_tokens, eos_token_id, keywords: of `generate()`: sampler settings, `seed`, `logits_processor`,
                `stopping_criteria`, `streamer`, `stop_strings` with `tokenizer`, and so on.
            generation_config: of this request; the manager's when None.
            return_logprobs: whether its results have log probabilities; as the manager says when None.

        Returns:
            Its id. With `num_return_sequences=n`, the others are `{id}__child#0` and so on.

        Raises:
            queue.Full: as many requests wait as may.
            RuntimeError: the manager is stopping.
            TypeError, ValueError: as `generate()`, or the request does not fit into the cache at all.
        """
        given = {"max_new_tokens": max_new_tokens, "eos_token_id": eos_token_id}
        given = {name: value for name, value in given.items() if value is not None}
        keywords = self._own_keywords() | given | keywords
        config = self.generation_config if generation_config is None else generation_config
        call = prepare(self.model, input_ids, config, keywords)
        name = self._new_id() if request_id is None else request_id
        make = (streaming, record_timestamps, self.return_logprobs if return_logprobs is None else return_logprobs)
        copies = len(call.prompt.ids)
        if copies == 1:
            requests = [request_of(name, call, *make)]
        else:
            seeds = row_seeds(call.generation_config.sampler_config.seed, copies).tolist()
            names = names_of(name, call.generation_config)
            one = keywords | {"num_return_sequences": 1}
            calls = [prepare(self.model, input_ids, config, one | {"seed": seed}) for seed in seeds]
            requests = [request_of(each, call, *make) for each, call in zip(names, calls, strict=True)]
        self._add(requests)
        release_threads()  # started by preparing the request, or by loading the model
        return name

    def add_requests(
        self,
        inputs: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        streaming: bool = False,
        record_timestamps: bool = False,
        **keywords: Any,
    ) -> list[str]:
        """`add_request` for several prompts. As in `generate()`, a `seed` is that of the first row: the next rows have
        seed + 1 and so on; a list has one for each.

        Returns:
            Their ids, in the order of the prompts.
        """
        settings = self.settings(**keywords)
        copies = settings.num_return_sequences or 1
        seeds = row_seeds(settings.sampler_config.seed, len(inputs) * copies).tolist()
        if keywords.get("streamer") is not None and len(inputs) > 1:
            raise ValueError(f"streamer takes one request; there are {len(inputs)}: add them one by one.")
        processors = copied(keywords.pop("logits_processor", None) or [], len(inputs))
        masks = keywords.pop("attention_mask", None)
        ids = []
        for number, prompt in enumerate(inputs):
            own = seeds[number * copies : (number + 1) * copies]
            mine = keywords | {"seed": own if copies > 1 else own[0]}
            if masks is not None:
                mine["attention_mask"] = masks[number : number + 1]
            if processors[number]:
                mine["logits_processor"] = LogitsProcessorList(processors[number])
            ids.append(self.add_request(prompt, None, max_new_tokens, streaming, record_timestamps, **mine))
        return ids

    def settings(self, **keywords: Any) -> RecurrentDepthGenerationConfig:
        """The settings of a request with these keywords of `add_request`, checked."""
        config = keywords.get("generation_config") or self.generation_config
        named = {name: value for name, value in (self.keywords | keywords).items() if name not in NOT_SETTINGS}
        return self.model.decoding_config(config, **named)

    def _own_keywords(self) -> dict[str, Any]:
        """The manager's keywords for one more request."""
        own = dict(self.keywords)
        if own.get("logits_processor"):
            # Another copy than the one for the next request.
            own["logits_processor"] = LogitsProcessorList(copied(own["logits_processor"], 2)[0])
        return own

    def _new_id(self) -> str:
        with self._changed:
            name = f"req_{self._counted}"
            self._counted += 1
        return name

    def _add(self, requests: list[Request]) -> None:
        with self._changed:
            if self._stops is not None:
                raise RuntimeError("The manager is stopping and takes no more requests: start() it again.")
            self._engine = self._engine or Engine(self.model, self.limits, self.stats)
            for request in requests:
                if request.id in self._requests:
                    raise ValueError(f"request_id={request.id!r} is in use: choose another one, or leave it out.")
            for request in requests:
                self._engine.add(request)
                self._requests[request.id] = request
            self._changed.notify_all()

    def cancel_request(self, request_id: str) -> None:
        """End a request; its result is one that failed, with the tokens so far. Nothing happens if it is over."""
        with self._changed:
            if request_id in self._requests:
                self._cancelled.append(request_id)
                self._changed.notify_all()

    def get_result(self, request_id: str | None = None, timeout: float | None = None) -> GenerationOutput | None:
        """The next result, of any request or of one; waits for it, `timeout` seconds at most.

        Returns:
            None after the timeout, or if the manager has stopped and there is none.
        """
        return self._outputs.take(request_id, timeout)

    def __iter__(self) -> Iterator[GenerationOutput]:
        """Results as they come, until the manager stops."""
        while (result := self.get_result()) is not None:
            yield result

    def request_id_iter(self, request_id: str) -> Generator[GenerationOutput, None, None]:
        """The results of one request as they come, up to its last."""
        while (result := self.get_result(request_id)) is not None:
            yield result
            if result.is_finished():
                return

    def register_result_handler(self, request_id: str, callback: Callable[[GenerationOutput], None]) -> None:
        """Call back on the running event loop for every result of a request, in place of `get_result`."""
        self._outputs.handle(request_id, callback, asyncio.get_running_loop())

    # --- on the decoding thread ---

    def _run(self, inference: bool) -> None:
        try:
            with torch.inference_mode(inference):
                while self._may_go_on():
                    self._report(self._engine.turn())
        except Exception as error:
            logger.error(f"Continuous batching ended by an error: {error!r}", exc_info=True)
            self._fail_all(error)
        finally:
            with self._changed:
                if not (self._stops and self._keeps_cache):
                    self._engine.free()
                    self._engine = None
                self._outputs.close()
                self._changed.notify_all()

    def _may_go_on(self) -> bool:
        """Wait for work, cancel what was cancelled, and admit who fits. False if the thread is to end."""
        while True:
            with self._changed:
                while self._pauses:
                    self._is_resting = True
                    self._changed.notify_all()
                    self._changed.wait()
                self._is_resting = False
                cancelled = [self._taken_out(name) for name in dict.fromkeys(self._cancelled)]
                self._cancelled = []
                is_over = self._stops == "now" or bool(self._stops and not self._engine.has_work)
                if not cancelled and not is_over:
                    if self._engine.has_work:
                        self._engine.admit()
                        return True
                    self._changed.wait()
            self._fail(filter(None, cancelled), RuntimeError("The request was cancelled."))
            if is_over:
                self._fail_all(RuntimeError("The manager was stopped before the request had ended."))
                return False

    def _taken_out(self, name: str) -> Request | None:
        """A request that is no longer in the engine; None if it is over."""
        request = self._requests.get(name)
        if request is not None:
            self._engine.cancel(name)
        return request

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            left = [self._taken_out(name) for name in list(self._requests)]
        self._fail(left, error)

    def _fail(self, requests: Iterable[Request], error: Exception) -> None:
        requests = list(requests)
        for request in requests:
            request.fail(error)
        self._report(requests)

    def _report(self, over: list[Request]) -> None:
        """Deliver the results of requests that have ended, and the new tokens of those that stream."""
        for request in over:
            request.note_tokens()
            request.finish()
            with self._changed:
                del self._requests[request.id]
            self.stats.count(request)
            self._outputs.deliver(request.output())
        for request in self._engine.members:
            if request.note_tokens() and request.streaming:
                self._outputs.deliver(request.output())


def names_of(request_id: str, config: GenerationConfig) -> list[str]:
    """The ids of a request's rows: with `num_return_sequences=n` it has n - 1 children, which come first."""
    return [f"{request_id}__child#{number}" for number in range((config.num_return_sequences or 1) - 1)] + [request_id]


def copied(processors: Sequence[LogitsProcessor], requests: int) -> list[list[LogitsProcessor]]:
    """Processors for each of several requests: those that may keep a state are copied.

    Raises:
        ValueError: one cannot be copied.
    """
    each = [one_per_row(p, requests) if kind_of(p) == "calls" else [p] * requests for p in processors]
    return [[copies[number] for copies in each] for number in range(requests)]

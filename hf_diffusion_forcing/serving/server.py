"""Serves one loaded model with the OpenAI API, using the parts of `transformers serve`.

`transformers serve` itself looks up model classes by name inside transformers, where this package's families are not.
Its handlers read the requests and write the answers; in between, the engine decodes them beside each other.
"""

import asyncio
import queue
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..generation.samplers import check_model
from ..settings.sampler_config import merged
from .budget import positions_of
from .request_log import write_json_lines

try:
    import openai  # noqa: F401  (transformers' handlers answer with its types)
    import uvicorn
    from fastapi import FastAPI, HTTPException, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.middleware.cors import CORSMiddleware

    from ..compat.serving import ModelManager, SystemOneHandler, TranscriptionHandler, build_server
    from .access import check_host
    from .answer import EngineState
    from .connections import PatientProtocol
    from .errors import fail, put_off, refuse
    from .gate import Gate
    from .handlers import ChatCompletions, Completions, Responses
    from .metrics import Metrics
    from .openmp import release_threads
    from .schema import document
    from .service import Service, ServiceLimits
except ImportError as error:
    raise ImportError(
        "Serving needs fastapi, uvicorn, openai and prometheus_client "
        f'({error}): pip install "hf-diffusion-forcing[serve]"'
    ) from error

PREFILL_CHUNK_SIZE = 32
"""Positions of a prompt that are read at once, where prompts are reused in whole chunks only."""

ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/health", "/metrics"})
"""The paths that are answered."""

UNUSED_ROUTES = frozenset({"/v1/systemone", "/v1/audio/transcriptions", "/load_model", "/reset"})
"""Paths of transformers' server that mean nothing for one loaded text model."""


def choose_sampler(model: PreTrainedModel, sampler: str | None = None, **settings) -> None:
    """Store a default sampler and its settings in a model's generation config.

    Args:
        model: a recurrent-depth model.
        sampler: its name; by default the stored one, or "diffusion_forcing" if none is stored. Choosing another
            sampler than the stored one drops the stored settings.
        settings: override stored settings of the same name.

    Raises:
        ValueError, TypeError: the sampler is unknown or does not fit the model, or a setting is wrong; then nothing
            changes.
    """
    config = model.generation_config
    stored_sampler, stored_preset, stored = config.stored()
    sampler = sampler or stored_sampler or "diffusion_forcing"
    config.resolve(model.config, sampler=sampler, **settings)
    check_model(sampler, model)
    if stored_sampler not in (None, sampler):
        stored_preset, stored = None, {}
    config.sampler, config.sampler_preset, config.sampler_config = sampler, stored_preset, merged(stored, settings)


class LoadedModel(ModelManager):
    """transformers' model manager with a single model that is already loaded.

    Args:
        model: answers every request.
        tokenizer: needs a chat template for chat completions and responses.
        name: the model's name for clients.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str):
        self.model, self.tokenizer = model, tokenizer
        self.since = int(time.time())
        super().__init__(force_model=name)

    def _load_processor(self, *args, **kwargs) -> PreTrainedTokenizerBase:
        return self.tokenizer

    def _load_model(self, *args, **kwargs) -> PreTrainedModel:
        return self.model

    def list_models(self, cache_dir: str | None = None) -> list[dict]:
        """The list at /v1/models."""
        return [{"id": self.force_model, "object": "model", "created": self.since, "owned_by": "hf-diffusion-forcing"}]

    # Its name before transformers 5.24.
    get_gen_models = list_models


def reuse_prompts(model: PreTrainedModel, chunk_size: int | None = None) -> None:
    """Choose in what pieces a model reads prompts, in its generation config.

    Args:
        model: its sampler is chosen already.
        chunk_size: positions of a piece; 0 reads prompts whole. None keeps what is stored or, if nothing is, takes
            `PREFILL_CHUNK_SIZE` if the sampler reuses prompts in whole chunks only.
    """
    config = model.generation_config
    if chunk_size is None and config.prefill_chunk_size is None and model.decoding_config().sampler_config.sees_chunks:
        chunk_size = PREFILL_CHUNK_SIZE
    if chunk_size is not None:
        config.prefill_chunk_size = chunk_size or None


def build_app(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    enable_cors: bool = False,
    *,
    api_key: str | None = None,
    limits: ServiceLimits | None = None,
    **batching: Any,
) -> FastAPI:
    """The OpenAI routes around one model; its engine runs between the application's startup and shutdown.

    Args:
        model: decodes with the sampler in its generation config; see `choose_sampler`.
        tokenizer: the model's tokenizer.
        name: the model's name for clients.
        enable_cors: accept requests from web pages of any origin.
        api_key: that clients must send as "Authorization: Bearer ..."; None lets everyone in.
        limits: of an HTTP request.
        batching: the limits of `init_continuous_batching()`: `max_batch_size` and so on.

    Raises:
        TypeError, ValueError: a limit is wrong.
    """
    manager = model.init_continuous_batching(**batching)
    service = Service(manager, tokenizer, limits or ServiceLimits(), api_key)
    models, state = LoadedModel(model, tokenizer, name), EngineState(manager)
    app = build_server(
        models,
        ChatCompletions(models, service),
        completion_handler=Completions(models, service),
        response_handler=Responses(models, service),
        transcription_handler=TranscriptionHandler(models, state),
        systemone_handler=SystemOneHandler(models, state),
        generation_state=state,
    )
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in UNUSED_ROUTES]
    app.router.lifespan_context = with_engine(app.router.lifespan_context, model, manager)
    app.state.service = service
    metrics = Metrics(manager, ROUTES)

    @app.get("/metrics")
    def read_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app.openapi = partial(document, app)
    app.add_middleware(Gate, service=service, metrics=metrics)
    if enable_cors:
        app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
    for error in (ValueError, TypeError, TemplateError, HTTPException, RequestValidationError):
        app.add_exception_handler(error, refuse)
    app.add_exception_handler(queue.Full, put_off)
    app.add_exception_handler(Exception, fail)
    return app


def measured_positions(model: PreTrainedModel) -> int:
    """`positions_of`, in a thread that will not compute again."""
    try:
        return positions_of(model, model.device)
    finally:
        release_threads()


def with_engine(lifespan: Any, model: PreTrainedModel, manager: Any) -> Any:
    """An application's lifespan with the engine's inside."""

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        if manager.limits.positions is None and manager.limits.rows > 1:
            # Now, and not while somebody waits.
            manager.limits.positions = await asyncio.to_thread(measured_positions, model)
        async with lifespan(app):
            manager.start()
            try:
                yield
            finally:
                await asyncio.to_thread(manager.stop, hard_stop=True)

    return running


class Server(uvicorn.Server):
    """uvicorn's server, which on SIGTERM or Ctrl+C first finishes what it has begun; a second signal ends it at once.

    Until then it listens on, so that new requests are refused by status 503 and balancers see it in /health.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.service.is_draining:
            self.should_exit = self.force_exit = True
        self.service.drain()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self.service.is_draining and not self.service.visits)


def serve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    host: str = "localhost",
    port: int = 8000,
    enable_cors: bool = False,
    log_level: str = "info",
    *,
    api_key: str | None = None,
    allow_anonymous: bool = False,
    limits: ServiceLimits | None = None,
    **batching: Any,
) -> None:
    """Answer requests until SIGTERM or Ctrl+C; those that have begun are finished.

    Args:
        host: to listen on. Without an `api_key`, only this machine's own, unless `allow_anonymous`.
        log_level: of the server's own messages; from "info" on, a line of JSON for each request on standard output.
        model, tokenizer, name, port, enable_cors, api_key, limits, batching: as in `build_app` and uvicorn.

    Raises:
        TypeError, ValueError: a limit is wrong, or the host is open to everyone.
    """
    check_host(host, api_key, allow_anonymous)
    app = build_app(model, tokenizer, name, enable_cors, api_key=api_key, limits=limits, **batching)
    logging.set_verbosity(max(logging.log_levels[log_level], logging.ERROR))
    write_json_lines(log_level)
    config = uvicorn.Config(
        app, host=host, port=port, log_level=log_level, access_log=False, http=PatientProtocol, ws="none"
    )
    Server(config, app.state.service).run()

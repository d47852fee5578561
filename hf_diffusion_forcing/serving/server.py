"""Serves one loaded model with the OpenAI API, using the parts of `transformers serve`.

`transformers serve` itself looks up model classes by name inside transformers, where this package's families are not.
Its handlers call `model.generate()` with the model's generation config, so they use the sampler stored there.
"""

import time

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..generation.samplers import check_model
from ..settings.generation_config import SAMPLER_NAMES, RecurrentDepthGenerationConfig
from ..settings.sampler_config import merged

try:
    import openai  # noqa: F401  (transformers' handlers answer with its types)
    import uvicorn
    from fastapi import FastAPI, HTTPException
    from fastapi.exceptions import RequestValidationError

    from ..compat.serving import (
        ChatCompletionHandler,
        CompletionHandler,
        ModelManager,
        ResponseHandler,
        SystemOneHandler,
        TranscriptionHandler,
        build_server,
    )
    from .streams import Checked, RecordingState, fail, refuse
except ImportError as error:
    raise ImportError(
        f'Serving needs fastapi, uvicorn and openai ({error}): pip install "hf-diffusion-forcing[serve]"'
    ) from error


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


class Seeded:
    """A handler that passes a request's `seed` to the sampler, so that concurrent requests do not change the text."""

    def _build_generation_config(self, body: dict, model_generation_config: RecurrentDepthGenerationConfig, **kwargs):
        config = super()._build_generation_config(body, model_generation_config, **kwargs)
        if body.get("seed") is None:
            return config
        config = RecurrentDepthGenerationConfig.of(config)
        if not config.names_sampler:
            for name in SAMPLER_NAMES:
                setattr(config, name, getattr(model_generation_config, name))
        return config.with_settings(seed=body["seed"])


class ChatCompletions(Checked, Seeded, ChatCompletionHandler): ...


class Completions(Checked, Seeded, CompletionHandler):
    async def handle_request(self, body, request_id):
        if "prompt" not in body:
            # transformers' handler would complete an empty one.
            raise HTTPException(400, "The request lacks the field 'prompt'.")
        return await super().handle_request(body, request_id)


class Responses(Checked, Seeded, ResponseHandler): ...


def build_app(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, enable_cors: bool = False
) -> FastAPI:
    """The routes of `transformers serve` around one model.

    Args:
        model: decodes with the sampler in its generation config; see `choose_sampler`.
        tokenizer: the model's tokenizer.
        name: the model's name for clients.
        enable_cors: accept requests from web pages of any origin.
    """
    manager, state = LoadedModel(model, tokenizer, name), RecordingState()
    app = build_server(
        manager,
        ChatCompletions(manager, state),
        completion_handler=Completions(manager, state),
        response_handler=Responses(manager, state),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(manager, state),
        generation_state=state,
        enable_cors=enable_cors,
    )
    for error in (ValueError, TypeError, TemplateError, HTTPException, RequestValidationError):
        app.add_exception_handler(error, refuse)
    app.add_exception_handler(Exception, fail)
    return app


def serve(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    host: str = "localhost",
    port: int = 8000,
    enable_cors: bool = False,
    log_level: str = "warning",
) -> None:
    """Answer requests until interrupted. Arguments as in `build_app` and uvicorn."""
    logging.set_verbosity(logging.log_levels[log_level])
    uvicorn.run(build_app(model, tokenizer, name, enable_cors), host=host, port=port, log_level=log_level)

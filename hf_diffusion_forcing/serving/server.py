"""A model behind the OpenAI API: the parts of `transformers serve`, put together around one loaded model.

`transformers serve` itself finds a model's class by its name inside transformers, where this package's families are
not. Its handlers call `model.generate()` with the model's generation config, so the sampler stored there decodes.
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
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse

    from ..compat.serving import (
        ChatCompletionHandler,
        CompletionHandler,
        GenerationState,
        ModelManager,
        ResponseHandler,
        SystemOneHandler,
        TranscriptionHandler,
        build_server,
    )
except ImportError as error:
    raise ImportError(
        f'Serving needs fastapi, uvicorn and openai ({error}): pip install "hf-diffusion-forcing[serve]"'
    ) from error


def choose_sampler(model: PreTrainedModel, sampler: str | None = None, **settings) -> None:
    """Store in a model's generation config how it decodes when a call does not say.

    Args:
        model: a recurrent-depth model.
        sampler: its name; by default the one stored already, or "diffusion_forcing" where there is none. Another
            one than was stored puts the stored settings aside.
        settings: replace stored settings of the same name.

    Raises:
        ValueError, TypeError: the sampler is unknown or not for this model, or a setting is not possible; nothing is
            changed then.
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
    """transformers' manager of models, with one model that is there already.

    Args:
        model: what every request is answered by.
        tokenizer: with a chat template, for chat completions and responses.
        name: what clients call the model.
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
    """A handler whose request's `seed` is the sampler's, so other requests under way do not change the text."""

    def _build_generation_config(self, body: dict, model_generation_config: RecurrentDepthGenerationConfig, **kwargs):
        config = super()._build_generation_config(body, model_generation_config, **kwargs)
        if body.get("seed") is None:
            return config
        config = RecurrentDepthGenerationConfig.of(config)
        if not config.names_sampler:
            for name in SAMPLER_NAMES:
                setattr(config, name, getattr(model_generation_config, name))
        return config.with_settings(seed=body["seed"])


class SeededChatCompletions(Seeded, ChatCompletionHandler): ...


class SeededCompletions(Seeded, CompletionHandler): ...


class SeededResponses(Seeded, ResponseHandler): ...


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """What the request asks for is not possible; the error says why, in the form OpenAI clients read."""
    status, message = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, error)
    return JSONResponse({"error": {"message": str(message), "type": "invalid_request_error"}}, status_code=status)


def build_app(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, enable_cors: bool = False
) -> FastAPI:
    """The routes of `transformers serve` around one model.

    Args:
        model: decodes as its generation config says, see `choose_sampler`.
        tokenizer: the model's.
        name: what clients call the model.
        enable_cors: let web pages of any origin send requests.
    """
    manager, state = LoadedModel(model, tokenizer, name), GenerationState()
    app = build_server(
        manager,
        SeededChatCompletions(manager, state),
        completion_handler=SeededCompletions(manager, state),
        response_handler=SeededResponses(manager, state),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(manager, state),
        generation_state=state,
        enable_cors=enable_cors,
    )
    for error in (ValueError, TypeError, TemplateError, HTTPException):
        app.add_exception_handler(error, refuse)
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
    """Answer requests until interrupted. The arguments are `build_app`'s and uvicorn's."""
    logging.set_verbosity(logging.log_levels[log_level])
    uvicorn.run(build_app(model, tokenizer, name, enable_cors), host=host, port=port, log_level=log_level)

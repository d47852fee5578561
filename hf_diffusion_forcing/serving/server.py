"""A model behind the OpenAI API: the parts of `transformers serve`, put together around one loaded model.

`transformers serve` itself finds a model's class by its name inside transformers, where this package's families are
not. Its handlers call `model.generate()` with the model's generation config, so the sampler stored there decodes.
"""

import time

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..settings.presets import preset, preset_sampler
from ..settings.sampler_configs import merged, sampler_config_class

try:
    import openai  # noqa: F401  (transformers' handlers answer with its types)
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState
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
        ValueError, TypeError: the sampler is unknown, or a setting is not possible; nothing is changed then.
    """
    config = model.generation_config
    stored_preset = getattr(config, "sampler_preset", None)
    stored = getattr(config, "sampler", None) or (preset_sampler(stored_preset) if stored_preset else None)
    sampler = sampler or stored or "diffusion_forcing"
    kept = stored in (None, sampler)
    if kept:
        settings = merged(getattr(config, "sampler_config", None) or {}, settings)
    chosen = preset(stored_preset, sampler, model.config.model_type) if kept and stored_preset else {}
    sampler_config_class(sampler).from_dict(merged(chosen, settings)).resolve(model.config.mean_recurrence)
    config.sampler, config.sampler_config = sampler, settings
    if not kept:
        config.sampler_preset = None


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

    def _build_generation_config(self, body: dict, *args, **kwargs):
        config = super()._build_generation_config(body, *args, **kwargs)
        if body.get("seed") is not None and getattr(config, "sampler", None) is not None:
            config.sampler_config = (getattr(config, "sampler_config", None) or {}) | {"seed": body["seed"]}
        return config


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

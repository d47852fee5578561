"""The OpenAPI document: what each route takes, in the words of the checks that requests go through."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ..version import __version__
from .fields import TYPES

JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}

SHARED = ("generation_config", "model", "seed", "stream", "temperature", "top_p")
SAMPLED = (*SHARED, "frequency_penalty", "logit_bias", "max_tokens", "n", "stop", "stream_options")
FIELDS = {
    "/v1/chat/completions": ("messages", *SAMPLED, "chat_template_kwargs", "max_completion_tokens", "tools"),
    "/v1/completions": ("prompt", *SAMPLED, "suffix"),
    "/v1/responses": ("input", *SHARED, "instructions", "max_output_tokens"),
}
"""The fields of each route's body; the first one is required."""

MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": ["system", "user", "assistant"]},
            "content": {"type": "string"},
        },
        "required": ["role", "content"],
    },
}

BOUNDS: dict[str, dict[str, Any]] = {
    "input": {"anyOf": [{"type": "string"}, MESSAGES]},
    "logit_bias": {"additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
    "max_completion_tokens": {"minimum": 1},
    "max_output_tokens": {"minimum": 1},
    "max_tokens": {"minimum": 1},
    "messages": MESSAGES,
    "n": {"minimum": 1},
    "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "stream_options": {"properties": {"include_usage": {"type": "boolean"}}},
    "temperature": {"minimum": 0},
    "top_p": {"minimum": 0, "maximum": 1},
}
"""What is known of a field's values beyond their type."""


def document(app: FastAPI) -> dict[str, Any]:
    """The application's OpenAPI document, with the fields of each body; made when it is first asked for."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    whole = get_openapi(title="hf-diffusion-forcing", version=__version__, routes=app.routes)
    for path, names in FIELDS.items():
        content = whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        properties = {name: _schema(name) for name in names}
        content["schema"] = {"type": "object", "properties": properties, "required": [names[0]]}
    app.openapi_schema = whole
    return whole


def _schema(name: str) -> dict[str, Any]:
    """The JSON schema of one field."""
    kinds = TYPES[name] if isinstance(TYPES[name], tuple) else (TYPES[name],)
    types = [JSON_TYPES[kind] for kind in kinds if kind is not int or float not in kinds]
    known = BOUNDS.get(name, {})
    # A field with alternatives has its types there.
    return known if "anyOf" in known else {"type": types[0]} | known

"""Which fields of the OpenAI API mean what here, checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import HTTPException

NUMBER, TEXTS = (int, float), (str, list)

TYPES: dict[str, type | tuple[type, ...]] = {
    "frequency_penalty": NUMBER,
    "generation_config": str,
    "input": TEXTS,
    "instructions": str,
    "logit_bias": dict,
    "max_completion_tokens": int,
    "max_output_tokens": int,
    "max_tokens": int,
    "messages": list,
    "model": str,
    "n": int,
    "prompt": str,
    "seed": int,
    "stop": TEXTS,
    "stream": bool,
    "stream_options": dict,
    "suffix": str,
    "temperature": NUMBER,
    "tools": list,
    "top_p": NUMBER,
    "chat_template_kwargs": dict,
}
"""Types of the fields that are used; a bool is no number."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "background": (False,),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "include": ([],),
    "max_tool_calls": (),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({},),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "store": (False,),
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("auto", "none"),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that are not supported, with the values that ask for nothing."""


@dataclass(frozen=True)
class Asked:
    """What a request asks for beyond what transformers' handlers answer.

    Attributes:
        n: how many texts.
        logprobs: whether each token's log probability is wanted.
        include_usage: whether a stream ends with the counts of tokens.
        stops: the texts end before the first of them.
    """

    n: int = 1
    logprobs: bool = False
    include_usage: bool = False
    stops: Sequence[str] = field(default_factory=list)


def check_body(body: dict[str, Any], used: set[str]) -> None:
    """Refuse fields of a wrong type, and those that would be ignored though they ask for something.

    Args:
        body: of the request.
        used: fields of this route that `NEUTRAL` names for another one.

    Raises:
        HTTPException: status 400; it names the field, its value or type, and the remedy.
    """
    for name, value in body.items():
        if value is None:
            continue
        if name in NEUTRAL and name not in used:
            if value not in NEUTRAL[name]:
                raise HTTPException(400, f"{name!r} is not supported by this server: leave it out.")
        elif name in TYPES:
            kinds = TYPES[name] if isinstance(TYPES[name], tuple) else (TYPES[name],)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise HTTPException(400, f"{name!r} must be {' or '.join(kind.__name__ for kind in kinds)}.")
    for name in ("messages", "input"):
        if isinstance(body.get(name), list):
            check_messages(name, body[name])


def check_messages(name: str, messages: list[Any]) -> None:
    """Refuse messages that are not objects with text.

    Raises:
        HTTPException: status 400.
    """
    if not messages:
        raise HTTPException(400, f"{name!r} is empty: pass at least one.")
    for message in messages:
        if not isinstance(message, dict):
            raise HTTPException(400, f"{name!r} must be a list of objects, not of {type(message).__name__}.")
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if not isinstance(content, str | list | None) or not all(isinstance(part, dict) for part in parts):
            raise HTTPException(400, f"The content of {name!r} must be a text, or a list of objects.")


def asked(body: dict[str, Any], limit: int, legacy: bool) -> Asked:
    """Take out what only this server answers.

    Args:
        body: of the request; changed.
        limit: the most texts at once.
        legacy: whether `logprobs` is a number, as in completions.

    Raises:
        HTTPException: status 400; a value is out of range.
    """
    n, options = body.pop("n", None), body.pop("stream_options", None)
    n, logprobs = 1 if n is None else n, body.pop("logprobs", None)
    if not 1 <= n <= limit:
        raise HTTPException(400, f"n={n} must be between 1 and {limit}.")
    if legacy and logprobs:
        raise HTTPException(400, f"logprobs={logprobs} asks for alternatives, which are not kept: pass 0.")
    if logprobs is not None and not isinstance(logprobs, int if legacy else bool):
        raise HTTPException(400, f"'logprobs' must be {'0' if legacy else 'true or false'}.")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not all(isinstance(each, str) and each for each in stops):
        raise HTTPException(400, "'stop' must be a text, or a list of texts, none of them empty.")
    if stop is not None:
        body["stop"] = list(stops) or None
    if options and not body.get("stream"):
        raise HTTPException(400, "'stream_options' needs stream=true.")
    return Asked(
        n, logprobs is not None if legacy else bool(logprobs), bool((options or {}).get("include_usage")), stops
    )


def biases(logit_bias: dict[str, Any], vocab_size: int) -> dict[tuple[int, ...], float]:
    """`logit_bias` as transformers' `sequence_bias`.

    Raises:
        HTTPException: status 400; a key is no token, or a value no number.
    """
    for token, bias in logit_bias.items():
        if not token.isdecimal() or int(token) >= vocab_size:
            raise HTTPException(400, f"'logit_bias' has the token {token!r}: tokens are 0 to {vocab_size - 1}.")
        if isinstance(bias, bool) or not isinstance(bias, int | float):
            raise HTTPException(400, f"'logit_bias' of the token {token} must be a number.")
    return {(int(token),): float(bias) for token, bias in logit_bias.items()}

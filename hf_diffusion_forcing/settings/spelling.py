"""A sampler on one line, as in `diffusion_forcing:preset=fast,wavefront=16`: parsed, and checked without a model."""

from __future__ import annotations

import json
import re
from typing import Any

from .presets import check_lossless
from .sampler_config import sampler_config_class

SPELLING = re.compile(r"(?P<sampler>\w+)(:(?P<settings>\w+=.*))?", re.DOTALL)


def parse_sampler(text: str) -> dict[str, Any]:
    """Keywords of `generate()` from a sampler's name and settings on one line.

    Args:
        text: `NAME` or `NAME:setting=value,setting=value`; values are JSON or YAML (`4`, `true`, `kl`,
            `{name: kl, threshold: 0.1}`), and `preset` is a setting of every sampler that has presets; `lossless` goes
            with the preset "auto".

    Raises:
        ValueError, TypeError: the spelling, the sampler or a setting is wrong.
    """
    kwargs = spelled_sampler(text)
    try:
        check_sampler(kwargs)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{text!r}: {error}") from error
    return kwargs


def spelled_sampler(text: str) -> dict[str, Any]:
    """`parse_sampler` without the check of the sampler and its settings.

    Raises:
        ValueError: the spelling is wrong.
    """
    match = SPELLING.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not a sampler: write its name, then settings after a colon, as in "
            "'diffusion_forcing:inner_recurrence=4,wavefront=32'."
        )
    kwargs: dict[str, Any] = {"sampler": match["sampler"]}
    for name, value in spelled_settings(match["settings"] or ""):
        name = "sampler_preset" if name == "preset" else name
        if name in kwargs:
            raise ValueError(f"{text!r} gives {name} twice.")
        kwargs[name] = parse_value(text, value)
    return kwargs


def spelled_settings(text: str) -> list[tuple[str, str]]:
    """Names and unparsed values of `setting=value,setting=value`."""
    items = (item.strip().partition("=") for item in re.split(r",(?=\s*\w+=)", text))
    return [(name, value) for name, _, value in items if name]


def parse_value(text: str, value: str) -> Any:
    """A setting's value. JSON is tried first, because YAML reads 1e-3 as a string."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        pass
    import yaml  # not at the top: most values are JSON, and the command line's help does not need it

    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r}: {value!r} is neither JSON nor YAML.") from error
    if parsed is None and value.strip() != "null":
        raise ValueError(f"{text!r} has a setting without a value.")
    return parsed


def check_sampler(kwargs: dict[str, Any]) -> None:
    """Refuse an unknown sampler, preset or setting; needs no model.

    Raises:
        ValueError, TypeError: as `generate()` would.
    """
    settings = dict(kwargs)
    sampler, preset = settings.pop("sampler"), settings.pop("sampler_preset", None)
    lossless = settings.pop("lossless", None)
    config_class = sampler_config_class(sampler)
    if "seed" in settings:
        raise ValueError("seed applies to all samplers: leave it out of the sampler's settings.")
    check_lossless(lossless, preset)
    if preset is None:
        config_class.from_dict(settings)
    else:
        config_class.from_preset(preset, lossless=lossless, **settings)


def named_samplers(samplers: list[str] | dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Keywords of `generate()` by a sampler's label: its spelling, or its key in the dict.

    Raises:
        ValueError, TypeError: no sampler is given, or one is given twice or is wrong.
    """
    if isinstance(samplers, dict):
        for name, kwargs in samplers.items():
            if "sampler" not in kwargs:
                raise ValueError(f"The settings of {name!r} name no sampler: {kwargs!r}.")
            check_sampler(kwargs)
        named = dict(samplers)
    else:
        named = {text: parse_sampler(text) for text in samplers}
        if len(named) < len(samplers):
            raise ValueError(f"A sampler is given twice: {', '.join(samplers)}.")
    if not named:
        raise ValueError("No sampler is given.")
    return named

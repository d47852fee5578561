"""The settings a search tries: a grid, the presets and random draws from a space of values."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from ..settings.presets import PRESET_SAMPLERS, preset
from ..settings.sampler_config import sampler_config_class
from ..settings.spelling import SPELLING, parse_value, spelled_settings
from ..settings.validation import nearest

SEARCH_SPACE: dict[str, dict[str, tuple]] = {
    "diffusion_forcing": {
        "inner_recurrence": (1, 2, 4, 8),
        "exit_threshold": (0.03, 0.01, 0.1, 0.3),
        "adaptive_prefill": (True, False),
        "wavefront": (32, 8, 16, 64),
        "headway": (1, 2, 4),
        "embedding_momentum": (0.0, 0.1, 0.3),
        "state_noise": (0.0, 0.05, 0.1),
    },
    "speculative_wavefront": {
        "draft_depth": (None, 1, 2, 4, 8),
        "second_draft_depth": (None, 0, 4, 8, 16),
    },
}
"""Each setting's values by sampler. The first two settings span a grid; on it, the others have their first value."""


def check_space(space: dict[str, dict[str, Any]]) -> None:
    """Refuse a search space with unknown samplers, settings or values.

    Raises:
        ValueError, TypeError: one is wrong; the message names the sampler, setting and value.
    """
    if not space:
        raise ValueError("The search space is empty: name a sampler and values of its settings.")
    for sampler, settings in space.items():
        config_class = sampler_config_class(sampler)
        if not settings:
            raise ValueError(f"The search space of {sampler!r} names no setting.")
        for name, values in settings.items():
            if name not in config_class.fields() or name in ("num_steps", "seed"):
                hint = nearest(name, tuple(SEARCH_SPACE.get(sampler, config_class.fields())))
                raise ValueError(f"The search space names {name!r}, which is not tuned for sampler={sampler!r}{hint}.")
            if not isinstance(values, (list, tuple)) or not values:
                raise ValueError(f"The search space needs a list of values for {name}, not {values!r}.")
            for value in values:
                config_class.from_dict({name: value})


def parse_space(texts: list[str]) -> dict[str, dict[str, list]]:
    """A search space from lines such as `diffusion_forcing:inner_recurrence=[1,2],wavefront=[8,16,32]`.

    Raises:
        ValueError, TypeError: the spelling, a sampler, a setting or a value is wrong.
    """
    space: dict[str, dict[str, list]] = {}
    for text in texts:
        match = SPELLING.fullmatch(text.strip())
        if match is None or not match["settings"]:
            raise ValueError(
                f"{text!r} is not a search space: write a sampler, then lists of values after a colon, as in "
                "'diffusion_forcing:inner_recurrence=[1,2],wavefront=[8,16]'."
            )
        settings = space.setdefault(match["sampler"], {})
        for name, value in spelled_settings(match["settings"]):
            settings[name] = parse_value(text, value)
    check_space(space)
    return space


def spelling(kwargs: dict[str, Any]) -> str:
    """Keywords of `generate()` in the form that `parse_sampler` reads."""
    settings = [f"{name}={json.dumps(value)}" for name, value in kwargs.items() if name != "sampler"]
    return f"{kwargs['sampler']}:{','.join(settings)}" if settings else kwargs["sampler"]


def preset_candidates(model_type: str, num_steps: int) -> dict[str, dict[str, Any]]:
    """The full keywords of `generate()` for each preset, by name."""
    return {
        name: {"sampler": sampler, **preset(name, sampler, model_type, num_steps)}
        for name, sampler in PRESET_SAMPLERS.items()
    }


def choose_candidates(
    space: dict[str, dict[str, Any]],
    count: int,
    seed: int,
    canonical: Callable[[dict[str, Any]], str | None],
    first: list[dict[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Different settings to try: `first`, then grid points and random points alternately, with samplers in turn.

    Args:
        count: the most candidates.
        seed: seed of the random points.
        canonical: returns equal texts for equivalent settings, and None for settings the model does not support.

    Raises:
        ValueError: the model supports none of them.
    """
    rng = random.Random(seed)
    able = [sampler for sampler in space if canonical({"sampler": sampler}) is not None]
    streams = [in_turn(points(sampler, space[sampler], rng)) for sampler in able]
    chosen: dict[str, dict[str, Any]] = {}
    for kwargs in (*first, *in_turn(streams)):
        if len(chosen) == count:
            break
        if (key := canonical(kwargs)) is not None:
            chosen.setdefault(key, kwargs)
    if not chosen:
        raise ValueError(f"The model supports no setting in the search space of {', '.join(space)}.")
    return list(chosen.values())


def points(sampler: str, settings: dict[str, Any], rng: random.Random) -> list[Iterator[dict[str, Any]]]:
    """The points of a sampler's grid in random order, and random points of its whole space."""
    names, default = list(settings), sampler_config_class(sampler)().to_dict()

    def keywords(values) -> dict[str, Any]:
        # Omit the sampler's defaults.
        return {"sampler": sampler, **{n: v for n, v in zip(names, values, strict=True) if v != default[n]}}

    grid = [
        keywords([*corner, *(settings[name][0] for name in names[2:])])
        for corner in product(*(settings[name] for name in names[:2]))
    ]
    rng.shuffle(grid)
    size = math.prod(map(len, settings.values()))
    drawn = (keywords([rng.choice(settings[name]) for name in names]) for _ in range(4 * size))
    return [iter(grid), drawn]


def in_turn(streams: list[Iterator]) -> Iterator:
    """Take one item from each stream in turn until all have ended."""
    streams = list(map(iter, streams))
    while streams:
        for stream in list(streams):
            try:
                yield next(stream)
            except StopIteration:
                streams.remove(stream)

"""Times `generate()` calls; all timing of the package is here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from transformers import GenerationConfig, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from ..generation.diffusion_forcing import DiffusionForcing
from ..generation.samplers import SAMPLERS


@dataclass
class Call:
    """The time and work of one `generate()` call.

    Attributes:
        seconds: wall clock of the call.
        first: seconds until the first new token, if requested; otherwise 0.
        rows: new ids of each row, including the end token if there is one.
        ticks: decoding ticks, or autoregression's tokens.
        core_passes: core calls while decoding, over all rows at once; the prompts' own passes are not counted.
        recurrences: the same, counted once for every position in the call that a row still needed.
        output: the output of `generate()`.
    """

    seconds: float
    first: float
    rows: list[list[int]]
    ticks: int
    core_passes: int
    recurrences: int
    output: Any

    @property
    def tokens(self) -> int:
        """Decoded tokens, without each row's first, which comes from the prompt's own pass."""
        return sum(len(row) - 1 for row in self.rows)

    @property
    def decoding(self) -> float:
        """Seconds after the first new token."""
        return self.seconds - self.first

    @property
    def seconds_per_token(self) -> float:
        """Seconds per token of decoding alone."""
        return self.decoding / self.tokens


def timed_generate(model, inputs: dict[str, Any], settings: dict[str, Any], first: bool = False) -> Call:
    """Time one call of `generate()`.

    Args:
        inputs: the tokenizer's output; `input_ids` is int64 [batch, length].
        settings: the other keywords.
        first: also time the first new token.
    """
    input_ids = inputs["input_ids"]
    clock: Clock | FirstTokens | None = None
    watched = {}
    if first:
        clock = Clock() if len(input_ids) == 1 else FirstTokens()
        watched = {"streamer": clock} if len(input_ids) == 1 else {"stopping_criteria": [clock]}
    began = time.perf_counter()
    output = model.generate(**inputs, **settings, **watched, return_dict_in_generate=True)
    new = output.sequences[:, input_ids.shape[1] :].tolist()  # waits for the device
    seconds = time.perf_counter() - began
    came = 0.0 if clock is None else clock.first - began
    stats = getattr(output, "stats", None)
    if stats is not None:
        rows = [ids[:count] for ids, count in zip(new, stats.tokens_committed, strict=True)]
        return Call(seconds, came, rows, stats.ticks, stats.core_passes, stats.positions_refined, output)
    # Autoregression uses transformers' own loop, which has no counts.
    config = model.decoding_config(**{name: value for name, value in settings.items() if name != "tokenizer"})
    rows, depth = [until_the_end(ids, config) for ids in new], config.sampler_config.num_steps
    ticks = max(map(len, rows)) - 1
    return Call(seconds, came, rows, ticks, depth * ticks, depth * sum(len(row) - 1 for row in rows), output)


def until_the_end(ids: list[int], config: GenerationConfig) -> list[int]:
    """A row from transformers' own loop without the padding after its end."""
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1]
    while len(ids) > 1 and ids[-1] == config.pad_token_id:
        ids = ids[:-1]
    return ids


class Clock(BaseStreamer):
    """Records when a row's first new token arrives; the first `put` is the prompt."""

    def __init__(self):
        self.puts, self.first = 0, 0.0

    def put(self, value):
        self.puts += 1
        if self.puts == 2:
            self.first = time.perf_counter()

    def end(self):
        pass


class FirstTokens(StoppingCriteria):
    """Records when a batch's first new tokens arrive, because streamers work with one row only; never stops."""

    def __init__(self):
        self.first = 0.0

    def __call__(self, input_ids, scores, **kwargs):
        self.first = self.first or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def median_seconds(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each call; calls alternate, after a warm-up of each."""
    seconds = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


@torch.no_grad()
def linear_seconds(layers: list[torch.nn.Linear], positions: int, repeats: int) -> float:
    """Median seconds of one call of every layer, over inputs of zeros [1, positions, channels]."""
    inputs = [layer.weight.new_zeros(1, positions, layer.weight.shape[1]) for layer in layers]
    device = layers[0].weight.device

    def call() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return median_seconds({"layers": call}, repeats)["layers"]


def tick_overhead(model, input_ids: torch.Tensor, **generate_kwargs) -> float:
    """Share of a tick's wall clock spent outside the model's own forward passes (embed, recur, decode).

    Args:
        input_ids: int64 [1, length].
        generate_kwargs: keywords of a `diffusion_forcing` call.
    """
    inside = 0.0

    def timed(verb):
        def call(*args, **kwargs):
            nonlocal inside
            start = time.perf_counter()
            result = verb(*args, **kwargs)
            inside += time.perf_counter() - start
            return result

        return call

    class Timed(DiffusionForcing):
        def tick(self, rows):
            nonlocal total
            start = time.perf_counter()
            super().tick(rows)
            total += time.perf_counter() - start

        def read(self, rows, first_seat):
            nonlocal inside
            first = yield from super().read(rows, first_seat)
            inside = 0.0
            return first

    total = 0.0
    verbs = {name: getattr(model, name) for name in ("embed", "recur", "decode")}
    with ExitStack() as patches:
        for name, verb in verbs.items():
            patches.enter_context(patch.object(model, name, timed(verb)))
        patches.enter_context(patch.dict(SAMPLERS, {DiffusionForcing.config_class.sampler: Timed}))
        model.generate(input_ids, sampler=DiffusionForcing.config_class.sampler, **generate_kwargs)
    if not total:
        raise ValueError("The text ended at its first token, so there was no tick to time: pass another prompt.")
    return 1 - inside / total

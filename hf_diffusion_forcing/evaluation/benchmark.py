"""Times samplers side by side on a model, each relative to autoregression timed next to it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch
from tqdm import tqdm

from ..generation.samplers import SAMPLERS
from ..packing import packed_dtypes
from ..settings.validation import check_integer
from .markdown import markdown_table
from .provenance import describe_machine, describe_model, provenance, versions
from .speed_rows import Timing, bandwidth, part_bytes, row
from .timing import Call, timed_generate

BASE_TOKENS = 10
WARM_UP_TOKENS = 4
COLUMNS = {
    "sampler": ("sampler", str),
    "tokens_per_second": ("tokens/s", "{:.1f}".format),
    "speedup": ("decoding", "{:.2f}x".format),
    "speedup_range": ("range", lambda ends: "{:.2f}-{:.2f}".format(*ends)),
    "speedup_end_to_end": ("end to end", "{:.2f}x".format),
    "first_token_speedup": ("first token", "{:.2f}x".format),
    "core_passes_per_token": ("passes/token", "{:.2f}".format),
    "equal_share": ("equal", "{:.1%}".format),
    "of_limit": ("of limit", "{:.0%}".format),
    "kv_bytes": ("KV", lambda size: f"{size / 1e6:.1f} MB"),
}
"""Columns of a benchmark's table: key, heading and format. docs/performance.md explains them."""


@dataclass(frozen=True)
class Case:
    """What is timed under one name.

    Attributes:
        settings: keywords of `generate()`.
        prompt: int64 [1, length], in place of the run's prompts; None for these.
    """

    settings: dict[str, Any]
    prompt: torch.Tensor | None = None


@dataclass(frozen=True)
class Benchmark:
    """The result of `benchmark`.

    Attributes:
        settings: model, machine, versions and arguments, as JSON values.
        rows: one for each sampler (`speed_rows.row`); speeds are medians over calls.
        parameters: of the model.
        bandwidth: median bytes per second at which the linear layers read their weights, at one position.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    parameters: int
    bandwidth: float

    def cells(self, columns: Iterable[str] = COLUMNS) -> tuple[list[str], list[list[str]]]:
        """The table: headings and rows of some columns."""
        rows = [{"of_limit": 1 / each["tick_over_ideal"]} | each for each in self.rows]
        chosen = {key: COLUMNS[key] for key in columns}
        cells = [[form(each[key]) for key, (_, form) in chosen.items()] for each in rows]
        return [heading for heading, _ in chosen.values()], cells

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return vars(self) | {}

    def to_markdown(self) -> str:
        """The table with the machine, the versions and the command's arguments."""
        model = self.settings["model"]
        return "\n\n".join(
            [
                f"# Benchmark of {model['name']}",
                f"{self.parameters / 1e6:.0f}M parameters in {model['dtype']}{self.packed}; "
                f"{provenance(self.settings)}. Linear layers read {self.bandwidth / 1e9:.1f} GB/s. "
                f"{self.settings['prompts']} prompts, {self.settings['repeats']} repeats, up to "
                f"{self.settings['max_new_tokens']} new tokens. Speedups are relative to {self.settings['base']} on "
                "the same prompt, timed just before the call.",
                "\n".join(markdown_table(*self.cells())),
            ]
        )

    @property
    def packed(self) -> str:
        """Names packed weights."""
        dtypes = [dtype.removeprefix("torch.") for dtype in self.settings["packed"]]
        return f" (packed in {', '.join(dtypes)})" if dtypes else ""


def benchmark(
    model,
    prompts: list[torch.Tensor],
    samplers: dict[str, dict[str, Any]],
    max_new_tokens: int = 96,
    repeats: int = 2,
    progress: bool = True,
) -> Benchmark:
    """Time samplers side by side; they take turns on every prompt.

    Args:
        model: a recurrent-depth model in evaluation mode.
        prompts: int64 [1, length] each, on any device.
        samplers: keywords of `generate()` by name. The first is the base of all ratios, as a rule autoregression.
        max_new_tokens: room for every text.
        repeats: rounds over the prompts.
        progress: show progress bars.

    Raises:
        ValueError: there is no prompt, no sampler, or nothing to decode: every text ends at its first token.
        ValueError, TypeError: a sampler's settings are wrong; checked before anything runs.
    """
    check_integer("max_new_tokens", max_new_tokens, 2)
    check_integer("repeats", repeats, 1)
    if not prompts or not samplers:
        raise ValueError(f"{len(prompts)} prompts and {len(samplers)} samplers: pass at least one of each.")
    for kwargs in samplers.values():
        model.decoding_config(**kwargs)
    base = next(iter(samplers))
    cases = {name: Case(kwargs) for name, kwargs in samplers.items()}
    prompts = [prompt.to(model.device) for prompt in prompts]
    table = measure(model, prompts, cases, samplers[base], repeats, max_new_tokens, progress)
    settings = {
        "model": describe_model(model),
        "machine": describe_machine(model),
        "versions": versions(),
        "date": date.today().isoformat(),
        "prompts": len(prompts),
        "repeats": repeats,
        "max_new_tokens": max_new_tokens,
        "base": f"{BASE_TOKENS} tokens of {base}",
        "samplers": samplers,
        "packed": packed_dtypes(model),
    }
    return Benchmark(settings, table["rows"], table["parameters"], table["bandwidth"])


def measure(
    model,
    prompts: list[torch.Tensor],
    cases: dict[str, Case],
    base: dict[str, Any],
    repeats: int,
    room: int,
    progress: bool = True,
) -> dict[str, Any]:
    """Time cases in turns on every prompt, each right after a short call of the base.

    Args:
        base: keywords of `generate()`. If it is also a case, the others' texts are compared with that.
        room: `max_new_tokens`, unless a case sets it.

    Returns:
        See `table_of`.
    """
    timings = {name: Timing() for name in cases}
    for case in cases.values():
        # The first calls of a process include lazy initialisation.
        timed(model, prompts[0], case.settings | {"max_new_tokens": WARM_UP_TOKENS})
    for _ in tqdm(range(repeats), desc="timing", disable=not progress):
        for input_ids in tqdm(prompts, desc="prompts", leave=False, disable=not progress):
            for name, case in cases.items():
                timing = timings[name]
                prompt = input_ids if case.prompt is None else case.prompt
                timing.rates.append(bandwidth(model))
                timing.bases.append(timed(model, prompt, base | {"max_new_tokens": BASE_TOKENS}))
                timing.calls.append(timed(model, prompt, {"max_new_tokens": room} | case.settings))
    same = next((timings[name] for name, case in cases.items() if case.settings == base), None)
    texts = None if same is None else [call.rows[0] for call in same.calls]
    return table_of(model, timings, {name: case.settings for name, case in cases.items()}, texts)


def table_of(
    model, timings: dict[str, Timing], settings: dict[str, dict[str, Any]], texts: list[list[int]] | None
) -> dict[str, Any]:
    """Turn timings into the rows of a table.

    Args:
        settings: keywords of `generate()` by name.
        texts: the base's outputs; None if equal tokens mean nothing.
    """
    parts = part_bytes(model)
    samplers = {name: SAMPLERS[model.decoding_config(**kwargs).sampler] for name, kwargs in settings.items()}
    return {
        "parameters": model.num_parameters(),
        "bandwidth": statistics.median(rate for timing in timings.values() for rate in timing.rates),
        "rows": [row(name, timing, samplers[name], texts, parts) for name, timing in timings.items()],
        "texts": {name: [call.rows[0] for call in timing.calls] for name, timing in timings.items()},
    }


def timed(model, inputs: dict | torch.Tensor, settings: dict[str, Any]) -> Call:
    """Time one call, on a prompt [1, length] or on a batch from the tokenizer.

    Raises:
        ValueError: every row ended at its first token.
    """
    inputs = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else dict(inputs)
    call = timed_generate(model, inputs, {"seed": 0} | settings, first=True)
    if call.tokens < 1:
        raise ValueError("A text ended at its first token, so there is no decoding to time: choose other prompts.")
    return call

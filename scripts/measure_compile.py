"""Measure what `compile=True` saves and costs on this machine: kernels of a tick, and time per token.

    python scripts/measure_compile.py

Writes docs/benchmarks/compile.json and compile.md; a part replaces only its own rows. Run the script on an otherwise
idle machine. Compiling takes most of its time.
"""

import re
import statistics
import time
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import torch
from measure_lossless import FACTOR, prompts
from measured_parts import measure_parts, signature
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.timing import timed_generate
from hf_diffusion_forcing.evaluation.widening import widen
from hf_diffusion_forcing.generation.compiled import CorePasses, core_pass
from hf_diffusion_forcing.generation.diffusion_forcing import DiffusionForcing
from hf_diffusion_forcing.generation.speculative_wavefront import SpeculativeWavefront

SAMPLERS = {"fast": DiffusionForcing, "lossless": SpeculativeWavefront}
"""The sampler of each preset."""

NUMBERS = ("passes", "eager", "compiled", "uncompiled core", "compiled core")
"""What a row of the kernels has."""

CALL = re.compile(r"^ +(?:buf\d+ = )?(?:extern_kernels\.|cpp_fused_|torch\.ops\.aten\._scaled)", re.MULTILINE)
"""A kernel in the code that torch writes for a CPU."""


class Kernels(TorchDispatchMode):
    """Counts the operators that do work; views and empty tensors do none."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += not (func.is_view or name in ("_unsafe_view", "empty", "new_empty", "empty_strided"))
        return func(*args, **(kwargs or {}))


def wide_model():
    model = AutoModelForCausalLM.from_pretrained(bundled_checkpoint(), dtype=torch.float32).eval()
    return widen(model, FACTOR).eval()


def kernels_of_ticks(model, ids: torch.Tensor, settings: dict) -> tuple[list[int], list[int], int]:
    """The operators of each tick, without those of the passes that would be compiled, the operators of each such pass,
    and how many core passes a tick has."""
    kernels, counts, apart, passes = Kernels(), [], [], 0
    sampler = SAMPLERS[settings["sampler_preset"]]
    tick = sampler.tick

    def counted_tick(self, rows):
        nonlocal passes
        before, done = kernels.count, self.stats.core_passes
        with kernels:
            tick(self, rows)
        counts.append(kernels.count - before)
        passes = self.stats.core_passes - done

    def uncounted_pass(self, s, e, places, entries, extent):
        """The same pass, not compiled."""
        before = kernels.count
        y = core_pass(self.model, s, e, places, entries.keys, entries.values, extent)
        apart.append(kernels.count - before)
        kernels.count = before
        return y

    with patch.object(sampler, "tick", counted_tick), patch.object(CorePasses, "run", uncounted_pass):
        model.generate(ids, **settings)
    return counts, apart, passes


def kernel_rows(count: int, room: int) -> Iterator[dict]:
    """Yield the kernels of a tick: each operator of the eager one; of the compiled one, those and the code's."""
    model, ids = wide_model(), prompts("problems", 1)[0]
    for preset in SAMPLERS:
        settings = {"sampler_preset": preset, "seed": 0, "max_new_tokens": 8, "eos_token_id": None}
        eager, _, passes = kernels_of_ticks(model, ids, settings)
        around, uncompiled, _ = kernels_of_ticks(model, ids, settings | {"compile": True})
        _, codes = run_and_get_code(model.generate, ids, **settings, compile=True)
        core, around = statistics.median(len(CALL.findall(code)) for code in codes), statistics.median(around)
        yield {
            "preset": preset,
            "passes": passes,
            "eager": statistics.median(eager),
            "compiled": around + passes * core,
            "uncompiled core": statistics.median(uncompiled),
            "compiled core": core,
        }


def cost_rows(count: int, room: int, batch: int = 1) -> Iterator[dict]:
    """Yield the time of compiled calls over that of others: the two take turns on every prompt.

    A first round over the prompts compiles what they need; it is not timed against the eager calls.
    """
    model, asked = wide_model(), prompts("problems", batch * count)
    shortest = min(row.shape[1] for row in asked)
    rows = [torch.cat([row[:, -shortest:] for row in asked[i * batch : (i + 1) * batch]]) for i in range(count)]
    for preset in SAMPLERS:
        settings = {"sampler_preset": preset, "seed": 0, "max_new_tokens": room, "eos_token_id": None}
        began = time.perf_counter()
        for ids in tqdm(rows, desc=f"{preset}, batch {batch}, compiling", leave=False):
            model.generate(ids, **settings, compile=True)
        first_round = time.perf_counter() - began
        ratios, equal, compiled_seconds = [], 0, 0.0
        for turn, ids in enumerate(tqdm(rows, desc=f"{preset}, batch {batch}", leave=False)):
            calls = {}
            for compiles in (False, True) if turn % 2 else (True, False):
                calls[compiles] = timed_generate(
                    model, {"input_ids": ids}, settings | {"compile": compiles}, first=True
                )
            ratios.append(calls[True].seconds_per_token / calls[False].seconds_per_token)
            equal += calls[True].rows == calls[False].rows
            compiled_seconds += calls[True].seconds
        yield {
            "preset": preset,
            "batch": batch,
            "pairs": count,
            "decoding": [f(ratios) for f in (statistics.median, min, max)],
            "equal": equal,
            "compiling": first_round - compiled_seconds,
        }


def kernels_page(part: dict) -> list[str]:
    lines = [
        "## Kernels of a tick",
        "",
        f"{signature(part)} Operators that do work, without views; medians over the ticks of a text of 8 tokens. The "
        "prelude, the coda, the head and the choice of tokens are not compiled.",
        "",
        "| preset | core passes | tick, eager | tick, compiled | core pass in static shape, not compiled | compiled |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in part["rows"]:
        numbers = " | ".join(f"{row[name]:.0f}" for name in NUMBERS)
        lines.append(f"| {row['preset']} | {numbers} |")
    return lines


def cost_page(part: dict) -> list[str]:
    lines = [
        f"## Time at batch {part['rows'][0]['batch']}",
        "",
        f"{signature(part)} Time per token with `compile=True` over the time without: medians of pairs that take "
        f"turns, with the least and the largest. The bundled checkpoint made {FACTOR} times as wide, float32, r = 32, "
        "plain weights. *Compiling* is how much longer the first round over the prompts took.",
        "",
        "| preset | pairs | decoding | equal texts | compiling, s |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for row in part["rows"]:
        ratio, equal = "{:.2f}x ({:.2f} to {:.2f})".format(*row["decoding"]), f"{row['equal']} of {row['pairs']}"
        lines.append(f"| {row['preset']} | {row['pairs']} | {ratio} | {equal} | {row['compiling']:.0f} |")
    return lines


PARTS = {
    "kernels": (kernel_rows, kernels_page),
    "cost": (cost_rows, cost_page),
    "batches": (partial(cost_rows, batch=4), cost_page),
}


if __name__ == "__main__":
    measure_parts("compile", "Compiled ticks", PARTS, count=4, counted="Pairs per row.", max_new_tokens=48)

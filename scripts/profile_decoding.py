"""Measure where the time of a tick goes and how the cost of its kernels grows with the width of a pass.

    python scripts/profile_decoding.py

The script widens the bundled checkpoint 8 times in memory. It writes docs/benchmarks/profile.json and profile.md.
"""

import json
import platform
import time
from datetime import date
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import typer
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint, pack_linear_weights, unpack_linear_weights
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.timing import Clock, median_seconds
from hf_diffusion_forcing.evaluation.widening import widen

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks"
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
KEYS = (64, 256, 1024, 4000)
CASES = {
    "autoregressive, r = 32": {"sampler": "autoregressive", "max_new_tokens": 8},
    "fast": {"sampler_preset": "fast", "max_new_tokens": 100},
    "lossless": {"sampler_preset": "lossless", "max_new_tokens": 100},
}
KINDS = {
    "linear layers": ("linear", "addmm", "aten::mm"),
    "attention": ("baddbmm", "bmm", "softmax", "scaled_dot_product"),
    "norms": ("rms_norm", "pow", "mean", "rsqrt", "aten::sum"),
    "copies, casts, sums": ("copy", "cat", "stack", "index", "mul", "add", "silu", "complex", "polar", "aten::sub"),
}
"""Per kind, substrings of kernel names. A kernel counts for the first kind that matches."""


class Profiled(Clock):
    """Profiles the decoding after the first new token."""

    def __init__(self):
        super().__init__()
        self.profile = profile(activities=[ProfilerActivity.CPU])

    def put(self, value):
        super().put(value)
        if self.puts == 2:
            self.profile.start()
            self.began = time.perf_counter()

    def end(self):
        self.seconds = time.perf_counter() - self.began
        self.profile.stop()


def shares(model, input_ids: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return, per sampler, the share of decoding time per kind of kernel; "between kernels" is Python and dispatch."""
    table = {}
    for name, settings in CASES.items():
        model.generate(input_ids, seed=0, **settings | {"max_new_tokens": 4})
        clock = Profiled()
        output = model.generate(input_ids, seed=0, **settings, streamer=clock, return_dict_in_generate=True)
        events = clock.profile.key_averages()
        row = dict.fromkeys([*KINDS, "other kernels"], 0.0)
        for event in events:
            kind = next((k for k, parts in KINDS.items() if any(p in event.key for p in parts)), "other kernels")
            row[kind] += event.self_cpu_time_total / 1e6 / clock.seconds
        # Autoregression has no ticks: count the tokens after the first. The streamer also received the prompt.
        ticks = output.stats.ticks if hasattr(output, "stats") else clock.puts - 2
        row["between kernels"] = 1 - sum(row.values())
        row["kernels a tick"] = sum(event.count for event in events) / ticks
        table[name] = row
    return table


@torch.no_grad()
def linear_costs(model, repeats: int = 15) -> dict[int, float]:
    """Return the milliseconds of all linear layers of the model, per number of positions."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]

    def call(width):
        inputs = [layer.weight.new_zeros(1, width, layer.in_features) for layer in layers]
        return lambda: [layer(x) for layer, x in zip(layers, inputs, strict=True)]

    return {width: 1e3 * s for width, s in median_seconds({w: call(w) for w in WIDTHS}, repeats).items()}


@torch.no_grad()
def attention_costs(heads: int, head_dim: int, repeats: int = 24, layers: int = 8) -> list[dict]:
    """Measure the attention of one layer, in milliseconds, per number of queries and keys.

    It compares torch's kernel with two plain matrix products. Successive calls use `layers` caches in turn, as the
    layers of a model do, so that keys and values come from memory.
    """
    rows = []
    for keys in KEYS:
        stored = torch.randn(2, layers, heads, keys, head_dim)
        low = {dtype: stored.to(dtype) for dtype in (torch.bfloat16, torch.float16)}
        for width in (1, 4, 16):
            query, mask = torch.randn(1, heads, width, head_dim), torch.zeros(1, 1, width, keys)
            turn = iter(range(10**9))

            def plain(query=query, mask=mask, turn=turn, stored=stored, layers=layers):
                key, value = stored[:, next(turn) % layers]
                scores = torch.baddbmm(mask[0], query[0], key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
                return torch.bmm(scores.softmax(-1), value)

            def kernel(stored=stored, query=query, mask=mask, turn=turn, layers=layers):
                key, value = stored[:, next(turn) % layers]
                mask = mask.to(key.dtype)
                return F.scaled_dot_product_attention(query.to(key.dtype), key[None], value[None], mask)

            calls = {"plain products": plain, "torch's kernel": kernel}
            for dtype, rounded in low.items():
                calls[f"torch's kernel, {str(dtype).removeprefix('torch.')}"] = partial(kernel, stored=rounded)
            milliseconds = {name: 1e3 * s for name, s in median_seconds(calls, repeats).items()}
            rows.append({"keys": keys, "queries": width, **milliseconds})
    return rows


@torch.no_grad()
def compiled_costs(model, repeats: int = 15) -> list[dict]:
    """Measure the layers of the core in milliseconds, eager and compiled, with all shapes constant.

    That is the best case for torch.compile: in real decoding the number of keys grows with every tick. `seconds to
    compile` is the time of the first call at a width.
    """
    rows = []
    for width in (1, 4, 8):
        torch.compiler.reset()  # otherwise the recompilation limit is reached, and later widths run eagerly
        cache, prompt = model.new_cache(1, "last", 512), torch.arange(200)[None]
        model.embed(torch.zeros_like(prompt), cache.place(prompt, start=0))
        at = cache.place(torch.arange(200, 200 + width)[None], start=200)
        model.base_model.rotate(at)
        x = torch.randn(1, width, model.config.n_embd, dtype=model.dtype)

        def layers(blocks, x=x, at=at):
            return lambda: [block(x, at, 0) for block in blocks]

        blocks = list(model.transformer.core_block)
        compiled = layers([torch.compile(block, dynamic=False) for block in blocks])
        start = time.perf_counter()
        compiled()
        first = time.perf_counter() - start
        seconds = median_seconds({"eager": layers(blocks), "compiled": compiled}, repeats)
        rows.append({"positions": width, **{n: 1e3 * s for n, s in seconds.items()}, "seconds to compile": first})
    return rows


def table(header: list[str], rows: list[list]) -> list[str]:
    cells = [[f"{each:.2f}" if isinstance(each, float) else str(each) for each in row] for row in rows]
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in cells]


def page(record: dict) -> str:
    """Return the record as Markdown."""
    lines = [
        "# Where the time of a tick goes",
        "",
        f"Measured on {record['date']} on {record['machine']}, by `scripts/profile_decoding.py`. The bundled "
        f"checkpoint, widened 8 times to {record['parameters'] / 1e6:.0f}M parameters in bfloat16, decodes one "
        "held-out problem at batch 1.",
        "",
        "## Shares of decoding time",
        "",
        "Measured with torch.profiler, which slows down small kernels. *Between kernels* is Python and dispatch.",
    ]
    for weights, samplers in record["shares"].items():
        names = list(next(iter(samplers.values())))
        rows = [
            [name, *(f"{row[n]:.0f}" if n == "kernels a tick" else f"{100 * row[n]:.0f} %" for n in names)]
            for name, row in samplers.items()
        ]
        lines += [
            "",
            f"### {weights.capitalize()} weights",
            "",
            *table(["sampler", *(n.replace(" a ", " per ") for n in names)], rows),
        ]
    lines += [
        "",
        "## All linear layers, per number of positions",
        "",
        "Milliseconds; in parentheses, relative to one position.",
        "",
    ]
    linear = record["linear"]
    rows = [
        [width, *(f"{linear[w][width]:.1f} ({linear[w][width] / linear[w][WIDTHS[0]]:.2f}x)" for w in linear)]
        for width in WIDTHS
    ]
    lines += table(["positions", *(f"{weights} weights" for weights in linear)], rows)
    lines += [
        "",
        "## Attention of one layer",
        "",
        "Milliseconds. Keys and values are float32 unless the column says otherwise.",
        "",
    ]
    rows = record["attention"]
    lines += table(list(rows[0]), [list(row.values()) for row in rows])
    lines += [
        "",
        "## torch.compile",
        "",
        "Milliseconds for the layers of the core with plain weights. All shapes are constant, which favours "
        "compilation: in real decoding the number of keys grows with every tick. Packed weights cannot be compiled, "
        "because inductor accepts oneDNN's layout only for constants.",
        "",
    ]
    rows = record["compiled"]
    lines += table(list(rows[0]), [list(row.values()) for row in rows])
    return "\n".join(lines) + "\n"


def main(threads: int = 2):
    """Profile decoding. Takes about three minutes."""
    torch.set_num_threads(threads)
    path = bundled_checkpoint()
    tokenizer = AutoTokenizer.from_pretrained(path)
    narrow = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model = widen(narrow, 8).to(torch.bfloat16)
    prompt = next(problems(2026, held_out=True, kind="worked")).prompt
    input_ids = tokenizer(prompt, return_tensors="pt").input_ids
    record = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()} CPU, {threads} threads, torch {torch.__version__}",
        "parameters": model.num_parameters(),
        "shares": {},
        "linear": {},
    }
    for weights in tqdm(("plain", "packed"), desc="profiling"):
        if weights == "packed":
            pack_linear_weights(model)
        record["shares"][weights] = shares(model, input_ids)
        record["linear"][weights] = linear_costs(model)
    record["attention"] = attention_costs(model.config.n_heads, model.config.head_dim)
    record["compiled"] = compiled_costs(unpack_linear_weights(model))
    (DOCS / "profile.json").write_text(json.dumps(record, indent=1) + "\n")
    (DOCS / "profile.md").write_text(page(record))
    typer.echo(page(record))


if __name__ == "__main__":
    typer.run(main)

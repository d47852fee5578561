"""What one sampler's `generate()` calls took, and what they read."""

import statistics
import time
from dataclasses import dataclass, field

import torch
from transformers.generation.streamers import BaseStreamer

from hf_diffusion_forcing import RavenForCausalLM


class Clock(BaseStreamer):
    """When the first new token came: what lies before it is the prompt's pass."""

    def __init__(self):
        self.puts, self.start, self.first = 0, time.perf_counter(), 0.0

    def put(self, value):
        self.puts += 1
        if self.puts == 2:
            self.first = time.perf_counter() - self.start

    def end(self):
        self.total = time.perf_counter() - self.start


@dataclass
class Timing:
    """All calls of one sampler.

    Attributes:
        total, first: seconds of each call, and until its first new token.
        texts: new tokens of each call.
        ticks, core_passes: while decoding, over all calls.
        kv_bytes: of the last call's cache.
        positions: refined, over all calls.
    """

    total: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    ticks: int = 0
    core_passes: int = 0
    positions: int = 0
    kv_bytes: int = 0

    @property
    def tokens(self) -> int:
        """Decoded ones: a text's first token comes from the prompt's own pass."""
        return sum(len(text) - 1 for text in self.texts)

    @property
    def decoding(self) -> list[float]:
        """Seconds of each call after its first new token."""
        return [total - first for total, first in zip(self.total, self.first, strict=True)]

    @property
    def seconds_per_token(self) -> list[float]:
        """Of each call, decoding alone."""
        return [seconds / (len(text) - 1) for seconds, text in zip(self.decoding, self.texts, strict=True)]


def run(model, input_ids: torch.Tensor, settings: dict, timing: Timing, max_new_tokens: int) -> None:
    """One call with a prompt [1, length]."""
    clock = Clock()
    output = model.generate(
        input_ids,
        **{"seed": 0, "max_new_tokens": max_new_tokens} | settings,
        streamer=clock,
        return_dict_in_generate=True,
    )
    new = output.sequences[0, input_ids.shape[1] :].tolist()
    if len(new) < 2:
        raise ValueError("A text ended at its first token: there is no decoding to time. Choose other prompts.")
    timing.total.append(clock.total)
    timing.first.append(clock.first)
    timing.texts.append(new)
    _count(timing, output, len(new) - 1, settings.get("num_steps") or model.config.mean_recurrence)


def run_batch(model, inputs: dict, settings: dict, timing: Timing, max_new_tokens: int) -> None:
    """One call with a batch; all rows are made to go on to the end. The prompt's pass is timed by a call of its own."""
    common = {"seed": 0, "eos_token_id": None, "return_dict_in_generate": True} | settings
    seconds = []
    for room in (1, max_new_tokens):
        start = time.perf_counter()
        output = model.generate(**inputs, **common, max_new_tokens=room)
        seconds.append(time.perf_counter() - start)
    rows = output.sequences[:, inputs["input_ids"].shape[1] :]
    timing.first.append(seconds[0])
    timing.total.append(seconds[1])
    timing.texts.append([*rows[0, :1].tolist(), *rows[:, 1:].flatten().tolist()])
    _count(timing, output, rows.shape[1] - 1, settings.get("num_steps") or model.config.mean_recurrence)


def _count(timing: Timing, output, steps: int, depth: int) -> None:
    stats = getattr(output, "stats", None)
    timing.ticks += stats.ticks if stats else steps
    timing.core_passes += stats.core_passes if stats else depth * steps
    timing.positions += stats.positions_refined if stats else depth * steps * len(output.sequences)
    timing.kv_bytes = output.past_key_values.nbytes


def part_bytes(model: RavenForCausalLM) -> dict[str, int]:
    """Bytes of the linear weights that a pass over the prelude, the core, and the coda with the head reads."""
    parts = {"prelude": 0, "core": 0, "coda": 0}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            size = module.weight.numel() * module.weight.element_size()
            core = "core_block" in name or "adapter" in name
            parts["core" if core else "prelude" if "prelude" in name else "coda"] += size
    return parts


@torch.no_grad()
def bandwidth(model: RavenForCausalLM, repeats: int = 9) -> float:
    """Bytes a second at which the model's own linear layers read their weights, one position at a time."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = [torch.zeros(1, 1, layer.weight.shape[1], dtype=layer.weight.dtype) for layer in layers]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)
        seconds.append(time.perf_counter() - start)
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in layers) / statistics.median(seconds)


def row(name: str, timing: Timing, base: Timing, parts: dict[str, int], rate: float) -> dict:
    """One row of a table: against the base, call by call.

    Args:
        parts: bytes of a pass over each part of the model.
        rate: bytes a second (`bandwidth`).
    """
    pairs = list(zip(base.texts, timing.texts, strict=True))
    equal = sum(a == b for mine, theirs in pairs for a, b in zip(mine, theirs, strict=False))
    # The ends run once a tick, but once a token where a tick is one recurrence of one token.
    ends = timing.tokens if name.startswith("adaptive") else timing.ticks
    read = (parts["prelude"] + parts["coda"]) * ends + parts["core"] * timing.core_passes
    speedups = [a / b for a, b in zip(base.seconds_per_token, timing.seconds_per_token, strict=True)]
    whole = [
        (slow / len(a)) / (fast / len(b)) for slow, fast, (a, b) in zip(base.total, timing.total, pairs, strict=True)
    ]
    return {
        "sampler": name,
        "tokens_per_second": timing.tokens / sum(timing.decoding),
        "speedup": statistics.median(speedups),
        "speedup_range": [min(speedups), max(speedups)],
        "speedup_end_to_end": statistics.median(whole),
        "first_token_speedup": statistics.median(a / b for a, b in zip(base.first, timing.first, strict=True)),
        "core_passes_per_token": timing.core_passes / timing.tokens,
        "positions_per_core_pass": timing.positions / timing.core_passes,
        "equal_share": equal / sum(map(len, base.texts)),
        "ms_per_tick": 1000 * sum(timing.decoding) / timing.ticks,
        "tick_over_ideal": sum(timing.decoding) / (read / rate),
        "kv_bytes": timing.kv_bytes,
    }


COLUMNS = {
    "sampler": "sampler",
    "quality": "quality",
    "tokens_per_second": "tokens/s",
    "speedup": "decoding",
    "speedup_end_to_end": "end to end",
    "first_token_speedup": "first token",
    "core_passes_per_token": "core passes a token",
    "positions_per_core_pass": "positions",
    "equal_share": "equal tokens",
    "ms_per_tick": "ms a tick",
    "predicted_ms": "predicted ms",
    "tick_over_ideal": "of limit",
    "kv_bytes": "KV",
}


def table(rows: list[dict]) -> str:
    """Rows as Markdown."""
    columns = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    lines = ["| " + " | ".join(COLUMNS[key] for key in columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for row in rows:
        low, high = row["speedup_range"]
        cells = {
            "sampler": row["sampler"],
            "quality": row.get("quality", ""),
            "tokens_per_second": f"{row['tokens_per_second']:.1f}",
            "speedup": f"{row['speedup']:.2f}x ({low:.2f} to {high:.2f})",
            "speedup_end_to_end": f"{row['speedup_end_to_end']:.2f}x",
            "first_token_speedup": f"{row['first_token_speedup']:.2f}x",
            "core_passes_per_token": f"{row['core_passes_per_token']:.2f}",
            "positions_per_core_pass": f"{row['positions_per_core_pass']:.1f}",
            "equal_share": "" if row["equal_share"] is None else f"{100 * row['equal_share']:.1f} %",
            "ms_per_tick": f"{row['ms_per_tick']:.1f}",
            "predicted_ms": f"{row.get('predicted_ms', 0):.1f}",
            "tick_over_ideal": f"{100 / row['tick_over_ideal']:.0f} %",
            "kv_bytes": f"{row['kv_bytes'] / 1e6:.1f} MB",
        }
        lines.append("| " + " | ".join(cells[key] for key in columns) + " |")
    return "\n".join(lines)

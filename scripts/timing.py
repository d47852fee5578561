"""What one sampler's `generate()` calls took, and what they read."""

import statistics
import time
from dataclasses import dataclass, field

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from hf_diffusion_forcing import RavenForCausalLM
from hf_diffusion_forcing.evaluation.measure import equal_tokens


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


class FirstToken(StoppingCriteria):
    """When the first new tokens of a batch came, which no streamer can tell; it stops nothing."""

    def __init__(self):
        self.start, self.first = time.perf_counter(), 0.0

    def __call__(self, input_ids, scores, **kwargs):
        self.first = self.first or time.perf_counter() - self.start
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass
class Call:
    """What one `generate()` call took and did.

    Attributes:
        total, first: seconds in all, and until the first new token.
        text: new tokens, of all rows.
        steps: decoding ticks, or tokens of autoregression.
        core_passes, positions: of these.
        kv_bytes: of its cache.
    """

    total: float
    first: float
    text: list[int]
    steps: int
    core_passes: int
    positions: int
    kv_bytes: int

    @property
    def tokens(self) -> int:
        """Decoded ones: a row's first token comes from the prompt's own pass."""
        return len(self.text) - 1

    @property
    def decoding(self) -> float:
        """Seconds after the first new token."""
        return self.total - self.first

    @property
    def seconds_per_token(self) -> float:
        """Decoding alone."""
        return self.decoding / self.tokens


def run(model, input_ids: torch.Tensor, settings: dict, max_new_tokens: int) -> Call:
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
    return _call(model, output, settings, clock.total, clock.first, new, len(new) - 1)


def run_batch(model, inputs: dict, settings: dict, max_new_tokens: int) -> Call:
    """One call with a batch, whose rows end where they end."""
    clock = FirstToken()
    output = model.generate(
        **inputs,
        **{"seed": 0, "max_new_tokens": max_new_tokens} | settings,
        stopping_criteria=[clock],
        return_dict_in_generate=True,
    )
    total = time.perf_counter() - clock.start
    rows = [_until_end(model, row) for row in output.sequences[:, inputs["input_ids"].shape[1] :].tolist()]
    text = rows[0][:1] + [token for row in rows for token in row[1:]]
    return _call(model, output, settings, total, clock.first, text, max(map(len, rows)) - 1)


def _until_end(model, ids: list[int]) -> list[int]:
    """A row's ids up to the first that ends a text."""
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    return ids[: next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))]


def _call(model, output, settings: dict, total: float, first: float, text: list[int], steps: int) -> Call:
    stats = getattr(output, "stats", None)
    depth = settings.get("num_steps") or model.config.mean_recurrence
    return Call(
        total,
        first,
        text,
        stats.ticks if stats else steps,
        stats.core_passes if stats else depth * steps,
        stats.positions_refined if stats else depth * steps * len(output.sequences),
        output.cache.nbytes,
    )


@dataclass
class Timing:
    """All calls of one sampler, each with what surrounded it.

    The speed of memory changes from minute to minute on a shared machine. So each call stands beside a short one of the
    base and a reading of the weights' speed, made just before it.

    Attributes:
        calls: in order.
        bases: the base's call before each.
        rates: bytes a second at which linear layers read their weights, before each.
    """

    calls: list[Call] = field(default_factory=list)
    bases: list[Call] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def sum(self, name: str) -> float:
        """The sum of an attribute over the calls."""
        return sum(getattr(call, name) for call in self.calls)


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


def row(name: str, timing: Timing, texts: list[list[int]] | None, parts: dict[str, int]) -> dict:
    """One row of a table, call by call against the base.

    Args:
        texts: the base's own, for the share of equal tokens; None where that means nothing.
        parts: bytes of a pass over each part of the model.
    """
    pairs = list(zip(timing.bases, timing.calls, strict=True))
    ideal = []
    for call, rate in zip(timing.calls, timing.rates, strict=True):
        # The ends run once a tick, but once a token where a tick is one recurrence of one token.
        ends = call.tokens if name.startswith("adaptive") else call.steps
        ideal.append(((parts["prelude"] + parts["coda"]) * ends + parts["core"] * call.core_passes) / rate)
    speedups = [base.seconds_per_token / call.seconds_per_token for base, call in pairs]
    whole = [(base.first + call.tokens * base.seconds_per_token) / call.total for base, call in pairs]
    equal = None
    if texts is not None:
        equal = equal_tokens([call.text for call in timing.calls], texts) / sum(map(len, texts))
    return {
        "sampler": name,
        "tokens_per_second": timing.sum("tokens") / timing.sum("decoding"),
        "speedup": statistics.median(speedups),
        "speedup_range": [min(speedups), max(speedups)],
        "speedup_end_to_end": statistics.median(whole),
        "first_token_speedup": statistics.median(base.first / call.first for base, call in pairs),
        "core_passes_per_token": timing.sum("core_passes") / timing.sum("tokens"),
        "positions_per_core_pass": timing.sum("positions") / timing.sum("core_passes"),
        "equal_share": equal,
        "ms_per_tick": 1000 * statistics.median(call.decoding / call.steps for call in timing.calls),
        "tick_over_ideal": statistics.median(
            call.decoding / seconds for call, seconds in zip(timing.calls, ideal, strict=True)
        ),
        "kv_bytes": timing.calls[-1].kv_bytes,
    }

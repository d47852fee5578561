"""How many passes samplers make, and over how many positions: measured on texts, whatever the machine."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from ..generation.samplers import check_model
from ..settings.spelling import named_samplers
from ..settings.validation import nearest
from .model_shape import VERBS
from .timing import timed_generate

SAMPLERS = named_samplers(["autoregressive", "adaptive", "diffusion_forcing:preset=fast", "speculative_wavefront"])
"""The samplers whose speed is estimated: keywords of `generate()` by spelling. The first is the base of all ratios."""

STORED = Path(__file__).with_suffix(".json")
"""Statistics of the two trained checkpoints, by text and depth, written by scripts/measure_estimate.py."""


@dataclass(frozen=True)
class WaveStatistics:
    """Means over decoded texts at batch 1.

    Attributes:
        ticks: ticks a token. A tick of autoregression is a token.
        calls: passes a tick, by verb.
        positions: positions a pass, by verb.
        shares_kv: whether all recurrences of a position share one entry of keys and values.
    """

    ticks: float
    calls: dict[str, float]
    positions: dict[str, float]
    shares_kv: bool

    @property
    def recurrences(self) -> float:
        """Recurrences a token, over all positions."""
        return self.ticks * self.calls["recur"] * self.positions["recur"]

    @property
    def entries(self) -> float:
        """Entries that a layer of the core or the coda reads for each position of the context."""
        return 1.0 if self.shares_kv else self.positions["recur"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@contextmanager
def counted(model) -> Iterator[tuple[Counter, Counter]]:
    """Counts the passes of each verb, and their positions, while the context lasts."""
    calls, positions = Counter(), Counter()

    def counting(verb: str):
        run = getattr(model, verb)

        def call(first, *args, **kwargs):
            calls[verb] += 1
            positions[verb] += first.shape[0] * first.shape[1]
            return run(first, *args, **kwargs)

        return call

    with ExitStack() as patches:
        for verb in VERBS:
            patches.enter_context(patch.object(model, verb, counting(verb)))
        yield calls, positions


def measure_waves(
    model, prompts: list[torch.Tensor], settings: dict[str, Any], max_new_tokens: int = 64
) -> WaveStatistics:
    """Decode some prompts and count passes; the passes over the prompts are left out.

    Args:
        model: a recurrent-depth model in evaluation mode.
        prompts: int64 [1, length] each.
        settings: keywords of `generate()`.
        max_new_tokens: room for every text.

    Raises:
        ValueError: there is no prompt, every text ends at its first token, or the settings are wrong.
    """
    if not prompts:
        raise ValueError("There are no prompts: pass at least one.")
    sampler_config = model.decoding_config(**settings).sampler_config
    calls, positions, ticks, tokens = Counter(), Counter(), 0, 0
    for prompt in prompts:
        inputs = {"input_ids": prompt.to(model.device)}
        # A text of one token makes the passes over the prompt and no other.
        with counted(model) as (calls_before, positions_before):
            timed_generate(model, inputs, {"seed": 0} | settings | {"max_new_tokens": 1})
        with counted(model) as (calls_now, positions_now):
            call = timed_generate(model, inputs, {"seed": 0} | settings | {"max_new_tokens": max_new_tokens})
        calls += calls_now - calls_before
        positions += positions_now - positions_before
        ticks, tokens = ticks + call.ticks, tokens + call.tokens
    if not tokens:
        raise ValueError("Every text ended at its first token, so there is no decoding to count: pass other prompts.")
    return WaveStatistics(
        ticks=ticks / tokens,
        calls={verb: calls[verb] / ticks for verb in VERBS},
        positions={verb: positions[verb] / calls[verb] for verb in VERBS},
        shares_kv=sampler_config.kv_sharing == "last",
    )


def measure_all_waves(
    model, prompts: list[torch.Tensor], max_new_tokens: int = 64, num_steps: int | None = None
) -> dict[str, WaveStatistics]:
    """`measure_waves` for each of `SAMPLERS` that is defined for the model, by spelling.

    Args:
        num_steps: recurrences a token; the model's own when None.
    """
    depth = {} if num_steps is None else {"num_steps": num_steps}
    measured = {}
    for name, settings in SAMPLERS.items():
        try:
            check_model(settings["sampler"], model)
        except ValueError:
            continue  # not for this family
        measured[name] = measure_waves(model, prompts, settings | depth, max_new_tokens)
    return measured


def stored_waves(text: str, num_steps: int) -> dict[str, WaveStatistics]:
    """The statistics of a trained checkpoint, by sampler.

    Args:
        text: "problems" or "python-source": what the checkpoint was trained on, and decoded.
        num_steps: recurrences a token.

    Raises:
        ValueError: there are no statistics of this text or at this depth.
    """
    texts = json.loads(STORED.read_text(encoding="utf-8"))["texts"]
    if text not in texts:
        raise ValueError(f"text={text!r} is unknown{nearest(text, [*texts])}.")
    depths = texts[text]
    if str(num_steps) not in depths:
        raise ValueError(
            f"num_steps={num_steps}: statistics are stored for {', '.join(depths)}. Measure your own checkpoint "
            "(--statistics own)."
        )
    return {name: WaveStatistics(**values) for name, values in depths[str(num_steps)].items()}

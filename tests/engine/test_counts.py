"""How much work a text takes: counts, which do not depend on the machine's speed, against what they were."""

import pytest

from hf_diffusion_forcing.evaluation.problems import problems

PAPER = {"sampler": "diffusion_forcing", "wavefront": 128, "inner_recurrence": 4, "embedding_momentum": 0.1}
COUNTS = {
    "quality": ({"sampler_preset": "quality"}, (88, 352, 708, 32)),
    "balanced": ({"sampler_preset": "balanced"}, (88, 176, 402, 6)),
    "fast": ({"sampler_preset": "fast"}, (90, 90, 321, 6)),
    "lossless": ({"sampler_preset": "lossless"}, (102, 204, 2784, 32)),
    "adaptive": ({"sampler": "adaptive"}, (291, 291, 291, 32)),
    "the paper's settings": (PAPER, (88, 352, 708, 32)),
}
"""Ticks, core passes, positions refined and the prompt's core passes for one held-out problem."""


@pytest.mark.parametrize("name", COUNTS)
def test_counts(bundled, name):
    """Another processor may round a state to the other side of a threshold: a little room for that."""
    model, tokenizer = bundled
    settings, expected = COUNTS[name]
    inputs = tokenizer(next(problems(2026, held_out=True, kind="worked")).prompt, return_tensors="pt")
    stats = model.generate(**inputs, seed=0, return_dict_in_generate=True, **settings).stats
    counts = (stats.ticks, stats.core_passes, stats.positions_refined, stats.prefill_core_passes)
    assert counts == pytest.approx(expected, rel=0.03, abs=2)

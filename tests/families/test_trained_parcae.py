"""A Parcae trained by our script on the bundled checkpoint's problems: diffusion forcing on a second architecture."""

from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing.evaluation.measure import accuracy, solve
from hf_diffusion_forcing.evaluation.problems import problems
from support import FIXTURES

PATH = FIXTURES / "parcae-problems"
ROOM = {"worked": 160, "mental": 12}


@pytest.fixture(scope="module")
def trained():
    model = AutoModelForCausalLM.from_pretrained(PATH, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(PATH)


def held_out(kind, count, lengths=None):
    return list(islice(problems(77, held_out=True, kind=kind, lengths=lengths), count))


def test_files():
    files = {path.name: path.stat().st_size for path in PATH.iterdir()}
    assert sum(files.values()) <= 6e6
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= set(files)


@pytest.mark.parametrize(("kind", "count"), [("worked", 10), ("mental", 24)])
def test_diffusion_forcing_keeps_the_answers(trained, kind, count):
    model, tokenizer = trained
    chosen, room = held_out(kind, count), {"max_new_tokens": ROOM[kind]}
    full = solve(model, tokenizer, chosen, sampler="autoregressive", **room)
    assert accuracy(chosen, full) >= 0.75
    forced = solve(model, tokenizer, chosen, sampler_preset="balanced", **room)
    assert accuracy(chosen, forced) >= accuracy(chosen, full) - 1 / count
    assert sum(a == b for a, b in zip(full, forced, strict=True)) >= 0.8 * count


def test_it_takes_fewer_core_passes_than_autoregression(trained):
    model, tokenizer = trained
    inputs = tokenizer(held_out("worked", 1)[0].prompt, return_tensors="pt")
    call = {"seed": 0, "max_new_tokens": 48, "return_dict_in_generate": True}
    expected = model.generate(**inputs, sampler="autoregressive", **call).sequences
    for settings, share in (({"sampler_preset": "fast"}, 3), ({"sampler_preset": "lossless"}, 2)):
        output = model.generate(**inputs, **settings, **call)
        equal = (output.sequences[:, : expected.shape[1]] == expected[:, : output.sequences.shape[1]]).float().mean()
        assert equal > (0.9 if "fast" in settings.values() else 0.9999)
        assert output.stats.core_passes * share < model.config.mean_recurrence * output.stats.decoded_tokens


def test_depth_matters(trained):
    """A long chain needs about a recurrence an operation."""
    model, tokenizer = trained
    chosen = held_out("mental", 32, (4, 6))
    shallow, full = (
        accuracy(chosen, solve(model, tokenizer, chosen, sampler="autoregressive", num_steps=steps, max_new_tokens=12))
        for steps in (1, 8)
    )
    assert shallow <= full - 0.3

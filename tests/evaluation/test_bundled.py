"""The checkpoint that ships: it loads, it solves problems it has not seen, and diffusion forcing keeps its answers."""

from itertools import islice
from pathlib import Path

import pytest
import torch

import hf_diffusion_forcing
from hf_diffusion_forcing.evaluation.measure import accuracy, recurrences_to_converge, solve
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.evaluation.runs import Run, compare
from hf_diffusion_forcing.evaluation.timing import tick_overhead
from support.matrix import cases

FORCING = {"sampler": "diffusion_forcing", "wavefront": 32, "exit_threshold": 0.03, "inner_recurrence": 4}


def held_out(kind, count, lengths=None):
    return list(islice(problems(77, held_out=True, kind=kind, lengths=lengths), count))


def test_size_and_files():
    files = {path.name: path.stat().st_size for path in Path(hf_diffusion_forcing.bundled_checkpoint()).iterdir()}
    assert sum(files.values()) <= 12 * 2**20
    wanted = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert wanted <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl", ".py"))]


def test_tokenizer(bundled):
    _, tokenizer = bundled
    assert 512 <= len(tokenizer) <= 2048
    assert tokenizer.padding_side == "left"
    for problem in held_out("worked", 20) + held_out("mental", 20):
        text = problem.prompt + problem.answer
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.decode(tokenizer("übrigens, 你好 🙂").input_ids) == "übrigens, 你好 🙂"


@pytest.mark.parametrize("kind", cases(["worked", "mental"], keep=["mental"]))
def test_diffusion_forcing_keeps_the_answers(bundled, kind):
    model, tokenizer = bundled
    chosen = held_out(kind, 24)
    full = solve(model, tokenizer, chosen, sampler="autoregressive")
    forced = solve(model, tokenizer, chosen, **FORCING)
    assert accuracy(chosen, full) >= 0.85
    assert accuracy(chosen, forced) >= accuracy(chosen, full) - 1 / 24


@pytest.mark.parametrize(
    ("kind", "lengths", "shallow"),
    cases([("worked", None, 1), ("mental", (5, 8), 4)], keep=[("mental", (5, 8), 4)]),
)
def test_depth_matters(bundled, kind, lengths, shallow):
    """Written-out steps need more than one recurrence, a long chain about one an operation."""
    model, tokenizer = bundled
    chosen = held_out(kind, 48, lengths)
    answers = {
        steps: solve(model, tokenizer, chosen, sampler="autoregressive", num_steps=steps) for steps in (shallow, 16)
    }
    assert accuracy(chosen, answers[shallow]) <= accuracy(chosen, answers[16]) - 0.3


def test_runs_are_compared_on_the_same_prompts(bundled):
    model, tokenizer = bundled
    prompts = [tokenizer(p.prompt, return_tensors="pt").input_ids for p in held_out("worked", 2)]
    runs = [Run("base", {"sampler": "autoregressive", "seed": 0}), Run("forcing", FORCING | {"seed": 0})]
    base, forcing = compare(model, prompts, runs, max_new_tokens=24)
    assert base.equal_share(base) == 1.0
    assert base.passes_per_token == 32
    assert forcing.tokens == 48 and forcing.passes_per_token < 10
    assert forcing.equal_share(base) > 0.9


def test_convergence_is_counted(bundled):
    model, tokenizer = bundled
    ids = torch.tensor([tokenizer(held_out("worked", 1)[0].prompt).input_ids])
    needed = recurrences_to_converge(model, ids)
    assert needed.shape == ids.shape and needed.min() >= 1 and needed.max() <= 65
    assert (recurrences_to_converge(model, ids, threshold=0.0, limit=3) == 4).all()


def test_overhead_is_a_share(bundled):
    model, tokenizer = bundled
    ids = tokenizer(held_out("worked", 1)[0].prompt, return_tensors="pt").input_ids
    assert 0 < tick_overhead(model, ids, max_new_tokens=12) < 1

"""The corpus of the standard library, and the checkpoint trained on it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing.evaluation.measure import emitted_loss
from hf_diffusion_forcing.evaluation.python_source import read_source, source_files, source_prompts
from support import FIXTURES

CHECKPOINT = FIXTURES / "python-source"


@pytest.fixture(scope="module")
def source_model():
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(CHECKPOINT)


def test_the_split_is_by_path_and_complete():
    training, held_out = source_files(), source_files(held_out=True)
    assert not set(training) & set(held_out)
    assert len(held_out) > 20 and len(training) > 10 * len(held_out)
    assert training == sorted(training) == source_files()
    assert not [path for path in training + held_out if {"test", "site-packages", "encodings"} & set(path.parts[-3:])]
    assert "def " in read_source(held_out[0]) + read_source(held_out[1]) + read_source(held_out[2])


def test_the_checkpoint_is_small_and_plain():
    files = {path.name: path.stat().st_size for path in CHECKPOINT.iterdir()}
    assert sum(files.values()) <= 6 * 2**20
    assert not [name for name in files if Path(name).suffix in (".bin", ".pt", ".pkl", ".py")]


def test_it_has_learned_and_depth_matters(source_model):
    """Held-out source costs far less than a uniform guess (6.9 nats), and less at full depth than at one recurrence."""
    model, tokenizer = source_model
    losses = {1: [], 32: []}
    for path in source_files(held_out=True)[:4]:
        ids = tokenizer(read_source(path)[:1500], return_tensors="pt").input_ids[:, :200]
        for steps in losses:
            with torch.no_grad():
                losses[steps].append(model(ids, labels=ids, num_steps=steps, seeds=torch.tensor([0])).loss.item())
    assert sum(losses[32]) / 4 < 3.5
    assert sum(losses[32]) < sum(losses[1])


def test_prompts_repeat_and_are_held_out(source_model):
    _, tokenizer = source_model
    prompts = source_prompts(tokenizer, 3, length=40, seed=1)
    assert [tuple(p.shape) for p in prompts] == [(1, 40)] * 3
    assert all(torch.equal(a, b) for a, b in zip(prompts, source_prompts(tokenizer, 3, length=40, seed=1), strict=True))
    everything = "\n".join(map(read_source, source_files(held_out=True)))
    assert all(tokenizer.decode(p[0, :20]) in everything for p in prompts)
    with pytest.raises(ValueError, match="80000000 characters"):
        source_prompts(tokenizer, 1, length=10_000_000)


def test_the_loss_of_an_emitted_text(source_model):
    """The model's own greedy text costs it less than another's."""
    model, tokenizer = source_model
    prompt = source_prompts(tokenizer, 1, length=40)[0]
    own = model.generate(prompt, sampler="autoregressive", seed=0, max_new_tokens=24)[0, 40:].tolist()
    assert 0 < emitted_loss(model, prompt, own) < emitted_loss(model, prompt, own[::-1])


def test_parallel_decoding_of_natural_text(source_model):
    model, tokenizer = source_model
    prompts = torch.cat(source_prompts(tokenizer, 2, length=40))
    common = {"seed": 0, "max_new_tokens": 20}
    expected = model.generate(prompts, sampler="autoregressive", **common)
    lossless = model.generate(prompts, sampler="speculative_wavefront", draft_depth=4, **common)
    assert lossless.tolist() == expected.tolist()
    forced = model.generate(prompts, sampler="diffusion_forcing", inner_recurrence=4, **common)
    assert (forced == expected).float().mean() > 0.7

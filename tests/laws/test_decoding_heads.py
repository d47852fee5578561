"""Law 5, and those of early exit, with decoding heads: right or wrong, they change the speed and never the text."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing import RavenForCausalLM
from hf_diffusion_forcing.generation.guesses import EXTRA
from support import FAMILIES, left_pad, tiny_config
from support.heads import random_heads, with_start_head

SPECULATIVE = {"sampler": "speculative_wavefront"}
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4, 1]])


@pytest.fixture(scope="module")
def wild():
    """Shallow and deep readouts hardly ever agree."""
    torch.manual_seed(1)
    return RavenForCausalLM(tiny_config(mean_recurrence=8)).eval()


@given(
    rows=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=12), min_size=1, max_size=3),
    depths=st.sampled_from([(2, 1, 0), (4, 1, 2), (4, 2, 0), (6, 1, 3), (8, 1, 4), (8, 2, 4), (8, 4, 0)]),
    draft_tokens=st.sampled_from([1, 2, 3, 5, 9, "auto"]),
    source=st.sampled_from([None, "prompt_lookup"]),
    heads=st.tuples(st.integers(0, 5), st.integers(0, 4), st.sampled_from([0.1, 1.0, 30.0, math.nan])),
    seed=st.integers(-(2**62), 2**62),
    room=st.integers(1, 18),
    do_sample=st.booleans(),
    end=st.none() | st.integers(0, 60),
    more=st.sampled_from([{}, {"repetition_penalty": 1.4}, {"temperature": 0.5}, {"no_repeat_ngram_size": 2}]),
)
def test_law_5_whatever_the_heads(wild, rows, depths, draft_tokens, source, heads, seed, room, do_sample, end, more):
    num_steps, draft_depth, second = depths
    common = {"num_steps": num_steps, "seed": seed, "max_new_tokens": room, "do_sample": do_sample, "top_k": 0}
    common |= more | {"eos_token_id": end, "pad_token_id": 0}
    inputs = left_pad(rows)
    expected = wild.generate(**inputs, sampler="autoregressive", **common).tolist()
    settings = {"draft_depth": draft_depth, "second_draft_depth": second, "draft_tokens": draft_tokens}
    number, extra_tokens, scale = heads
    model = copy.copy(wild)
    model.decoding_heads = random_heads(wild, (1, 2, 4), extra_tokens, number, scale)
    assert model.generate(**inputs, **SPECULATIVE, **settings, draft_source=source, **common).tolist() == expected
    assert wild.decoding_heads is None


@pytest.mark.parametrize("name", FAMILIES)
def test_law_5_for_every_family(name):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name]).eval()
    common = {"num_steps": 4, "seed": 1, "max_new_tokens": 10, "eos_token_id": None}
    expected = model.generate(PROMPT, sampler="autoregressive", **common).tolist()
    model.decoding_heads = random_heads(model)
    settings = {"draft_depth": 1, "draft_tokens": 4, "return_dict_in_generate": True}
    output = model.generate(PROMPT, **SPECULATIVE, **settings, **common)
    assert output.sequences.tolist() == expected
    assert output.stats.guesses[EXTRA][0] > 0


@pytest.mark.parametrize("part", ["coda", "head", "embedding"])
def test_law_5_under_forward_hooks(wild, part):
    """With a hook, a pass runs on a grid of rows: a hook may depend on a row's number, also one on the head."""
    inputs, common = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]]), {"num_steps": 4, "seed": 0, "max_new_tokens": 12}
    module = {"coda": wild.transformer.coda[0], "head": wild.lm_head, "embedding": wild.transformer.wte}[part]
    added = torch.tensor([0.0, 0.5])[:, None, None]
    hook = module.register_forward_hook(lambda module, args, output: output + added * output.roll(1, -1))
    try:
        expected = wild.generate(**inputs, sampler="autoregressive", **common).tolist()
        wild.decoding_heads = random_heads(wild)
        assert wild.generate(**inputs, **SPECULATIVE, draft_tokens=4, **common).tolist() == expected
    finally:
        wild.decoding_heads = None
        hook.remove()


def test_readouts_change_drafts_and_auto_asks_them(wild):
    """The zero readout changes nothing; a random one changes the drafts."""
    model = copy.copy(wild)
    settings = SPECULATIVE | {"draft_depth": 1, "seed": 0, "max_new_tokens": 20, "return_dict_in_generate": True}
    drafts = [model.generate(PROMPT, **settings, return_trace=True).trace.to_dict()]
    heads = random_heads(wild, extra_tokens=0, scale=30.0)
    zero = {name: torch.zeros_like(tensor) for name, tensor in heads.tensors.items()}
    for tensors in (zero, heads.tensors):
        model.decoding_heads = heads.changed(tensors)
        drafts.append(model.generate(PROMPT, **settings, return_trace=True).trace.to_dict())
    assert drafts[0] == drafts[1] != drafts[2]
    auto = model.generate(PROMPT, **settings | {"draft_depth": "auto"})
    assert (
        auto.sequences.tolist()
        == model.generate(PROMPT, sampler="autoregressive", **{"seed": 0, "max_new_tokens": 20}).tolist()
    )


@pytest.mark.parametrize("scale", [1.0, math.nan])
def test_laws_3_4_and_6_with_the_learned_criterion(wild, scale):
    """A row's text does not depend on its batch or its padding, and every call ends."""
    model = copy.copy(wild)
    model.decoding_heads = random_heads(wild, scale=scale)
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
    for sampler in ("adaptive", "diffusion_forcing"):
        settings = {"sampler": sampler, "exit_criterion": "learned", "seed": 0, "max_new_tokens": 10, "pad_token_id": 0}
        settings |= {"eos_token_id": None, "return_dict_in_generate": True}
        together = model.generate(**left_pad(rows), **settings)
        for number, row in enumerate(rows):
            alone = model.generate(torch.tensor([row]), **settings | {"seed": [number]})
            assert alone.sequences[0, len(row) :].tolist() == together.sequences[number, -10:].tolist()
    spent = model.generate(PROMPT, **settings | {"sampler": "adaptive"}).stats.recurrences_per_token
    assert spent == 8 if math.isnan(scale) else spent < 8


def test_a_learned_start_under_forward_hooks(wild):
    """With a hook, a pass runs on a grid of rows; this one changes nothing."""
    model = with_start_head(wild)
    settings = {"sampler": "diffusion_forcing", "learned_start": True, "seed": 0, "max_new_tokens": 12}
    inputs = left_pad([[1, 2, 3], [4, 5, 6, 7, 8]])
    expected = model.generate(**inputs, **settings).tolist()
    hook = model.transformer.coda[0].register_forward_hook(lambda module, args, output: output.clone())
    try:
        assert model.generate(**inputs, **settings).tolist() == expected
    finally:
        hook.remove()


@pytest.mark.parametrize("scale", [1.0, math.nan])
@pytest.mark.parametrize("more", [{}, {"kv_sharing": "none"}, {"wavefront": 5, "headway": 3, "inner_recurrence": 2}])
def test_laws_3_4_and_6_with_a_learned_start(wild, scale, more):
    """A row's text does not depend on its batch or its padding, and every call ends."""
    model = with_start_head(wild, scale=scale)
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11]]
    settings = {"sampler": "diffusion_forcing" if "wavefront" in more else "adaptive", "learned_start": True, "seed": 0}
    settings |= more | {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    together = model.generate(**left_pad(rows), **settings)
    for number, row in enumerate(rows):
        alone = model.generate(torch.tensor([row]), **settings | {"seed": [number]})
        assert alone[0, len(row) :].tolist() == together[number, -12:].tolist()

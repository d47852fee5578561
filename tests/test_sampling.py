"""Sampling and processors: the same noise at the same position, whatever the sampler."""

import pytest
import torch
from conftest import left_pad, new_tokens

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


def exact(tiny, **kwargs):
    """Diffusion forcing that refines one position at a time, fully: law 2."""
    return tiny.generate(
        PROMPT,
        sampler="diffusion_forcing",
        wavefront=1,
        inner_recurrence=tiny.config.mean_recurrence,
        max_new_tokens=16,
        **kwargs,
    )


def autoregressive(tiny, **kwargs):
    return tiny.generate(PROMPT, sampler="autoregressive", kv_sharing="last", max_new_tokens=16, **kwargs)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.5, "top_k": 10},
        {"do_sample": True, "top_p": 0.8},
        {"do_sample": True, "min_p": 0.02},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [3, 5, 7]},
        {"min_new_tokens": 12, "eos_token_id": 7},
        {"bad_words_ids": [[3], [5, 7]]},
    ],
)
def test_processors_see_each_positions_own_prefix(tiny, settings):
    assert exact(tiny, seed=4, **settings).tolist() == autoregressive(tiny, seed=4, **settings).tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"encoder_repetition_penalty": 1.2},
        {"encoder_no_repeat_ngram_size": 2},
        {"prefix_allowed_tokens_fn": lambda row, ids: [10 + row, 20 + row, 30 + row]},
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
    ],
)
def test_processors_in_a_padded_batch(tiny, settings):
    """Some processors hold a tensor per row or ask for the row's number: autoregression with them, row for row."""
    inputs = left_pad([[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]])
    common = {"kv_sharing": "last", "max_new_tokens": 10, "seed": 4} | settings
    depth = tiny.config.mean_recurrence
    forcing = tiny.generate(**inputs, sampler="diffusion_forcing", wavefront=1, inner_recurrence=depth, **common)
    assert forcing.tolist() == tiny.generate(**inputs, sampler="autoregressive", **common).tolist()


def test_seeds(tiny):
    draw = {"do_sample": True, "top_k": 0}
    one = exact(tiny, seed=1, **draw).tolist()
    assert exact(tiny, seed=1, **draw).tolist() == one
    assert exact(tiny, seed=2, **draw).tolist() != one
    for _ in range(2):
        torch.manual_seed(11)
        again = exact(tiny, **draw).tolist()
        torch.manual_seed(11)
        assert exact(tiny, **draw).tolist() == again


def test_returned_sequences_differ(tiny):
    ids = exact(tiny, seed=1, do_sample=True, top_k=0, num_return_sequences=3)
    rows = new_tokens(ids, PROMPT.shape[1])
    assert len({tuple(row) for row in rows}) == 3
    assert exact(tiny, seed=2, do_sample=True, top_k=0).tolist()[0] == ids[1].tolist()

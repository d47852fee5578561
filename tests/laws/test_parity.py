"""Law 1: the native forward equals the published reference implementation."""

from itertools import product

import pytest
import torch

from hf_diffusion_forcing.cache import NoCache
from support.matrix import cases, crossed

CLOSE = {"atol": 1e-4, "rtol": 0}


@pytest.mark.parametrize(
    ("num_steps", "use_cache"),
    crossed([1, 4, 8, 32], [True, False], keep=[(1, True), (8, False), (32, True)]),
)
@torch.no_grad()
def test_logits(huginn_mini, golden, num_steps, use_cache):
    for prompt in range(4):
        output = huginn_mini(golden[f"input_ids_{prompt}"], num_steps=num_steps, state_scale=0.0, use_cache=use_cache)
        torch.testing.assert_close(output.logits, golden[f"logits_{prompt}_r{num_steps}"], **CLOSE)
        if num_steps == 32:
            torch.testing.assert_close(output.latents, golden[f"latents_{prompt}_r32"], **CLOSE)


@torch.no_grad()
def test_prelude(huginn_mini, golden):
    for prompt in range(4):
        ids = golden[f"input_ids_{prompt}"]
        at = NoCache().place(torch.arange(ids.shape[1])[None])
        torch.testing.assert_close(huginn_mini.embed(ids, at), golden[f"prelude_{prompt}"], **CLOSE)


# The golden texts have 64 tokens; by default the beginning of one is written.
every_text = pytest.mark.parametrize(("prompt", "length"), cases([(0, 12), *product(range(4), [64])], keep=[(0, 12)]))


@every_text
def test_greedy_tokens_with_one_entry_per_recurrence(huginn_mini, golden, prompt, length):
    ids = golden[f"input_ids_{prompt}"]
    expected = golden[f"greedy_full_{prompt}"][:, : ids.shape[1] + length].tolist()
    for sampler in (None, "autoregressive"):
        text = huginn_mini.generate(ids, max_new_tokens=length, num_steps=32, state_scale=0.0, sampler=sampler)
        assert text.tolist() == expected


@every_text
def test_greedy_tokens_with_shared_entries(huginn_mini, golden, prompt, length):
    ids = golden[f"input_ids_{prompt}"]
    text = huginn_mini.generate(
        ids,
        max_new_tokens=length,
        num_steps=32,
        state_scale=0.0,
        sampler="autoregressive",
        kv_sharing="last",
    )
    assert text.tolist() == golden[f"greedy_shared_{prompt}"][:, : ids.shape[1] + length].tolist()

"""A widened checkpoint computes what its original does."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing.evaluation.widening import widen
from support import FAMILIES
from support.commands import run


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_logits_and_tokens_are_the_originals(huginn_mini, prompts, factor):
    wide = widen(huginn_mini, factor)
    assert wide.config.n_embd == factor * huginn_mini.config.n_embd
    ids = torch.tensor([prompts[0]])
    seeds = torch.tensor([3])
    with torch.no_grad():
        for steps in (1, 8):
            narrow_logits, wide_logits = (m(ids, num_steps=steps, seeds=seeds).logits for m in (huginn_mini, wide))
            torch.testing.assert_close(wide_logits, narrow_logits, atol=1e-3, rtol=0)
    for settings in ({"sampler": "autoregressive"}, {"sampler": "diffusion_forcing", "inner_recurrence": 2}):
        texts = [m.generate(ids, max_new_tokens=8, num_steps=8, seed=5, **settings) for m in (huginn_mini, wide)]
        assert texts[0].tolist() == texts[1].tolist()


def test_the_bundled_checkpoint_eight_times_wider(bundled, tmp_path):
    result = run("widen", tmp_path, "--factor", 8, "--dtype", "float32")
    assert result.exit_code == 0, result.stderr
    wide = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in wide.parameters()) > 100e6
    model, tokenizer = bundled
    inputs = tokenizer("Q: Start at 3 + 2. Last digit?\nA:", return_tensors="pt")
    with torch.no_grad():
        logits = [m(**inputs, seeds=torch.tensor([0])).logits for m in (model, wide)]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=0)
    short = {"num_steps": 8, "seed": 0, "max_new_tokens": 4}
    assert len({str(m.generate(**inputs, **short).tolist()) for m in (model, wide)}) == 1


@pytest.mark.parametrize("factor", [2, 3])
def test_a_parcae_keeps_its_logits_and_tokens(factor):
    """Its gates read the first channels, and its value embeddings repeat with the heads."""
    narrow = AutoModelForCausalLM.from_pretrained(FAMILIES["parcae"]).eval()
    wide = widen(narrow, factor)
    assert wide.config.n_embd == factor * 64 and wide.transformer.value_embeds["3"].weight.shape == (128, factor * 64)
    ids, seeds = torch.tensor([[55, 2, 103, 95, 53]]), torch.tensor([3])
    with torch.no_grad():
        for steps in (1, 8):
            logits = [m(ids, num_steps=steps, seeds=seeds).logits for m in (narrow, wide)]
            torch.testing.assert_close(logits[1], logits[0], atol=1e-3, rtol=0)
    for settings in ({"sampler": "autoregressive"}, {"sampler": "diffusion_forcing", "inner_recurrence": 2}):
        texts = [m.generate(ids, max_new_tokens=8, seed=5, **settings) for m in (narrow, wide)]
        assert texts[0].tolist() == texts[1].tolist()


@pytest.mark.parametrize("family", ["ouro", "nanbeige", "hrm_text"], indirect=True)
def test_other_families_are_refused(family):
    with pytest.raises(ValueError, match=r"cannot be widened: pass a Huginn or a Parcae"):
        widen(family, 2)


def test_a_factor_below_one_is_refused(huginn_mini):
    with pytest.raises(ValueError, match="factor=0"):
        widen(huginn_mini, 0)

"""Fitting: a model learns heads from its own text, and stays as it is."""

import json
import shutil
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.python_source import source_starts
from hf_diffusion_forcing.fitting import FitSettings, fit_heads
from support import ROOT
from support.commands import run

SMALL = {"max_new_tokens": 16, "epochs": 2, "epsilon": 0.2, "progress": False, "extra_tokens": 2, "extra_rank": 32}


@pytest.fixture(scope="module")
def fitted():
    path = ROOT / "tests" / "fixtures" / "python-source"
    own = {"decoding_heads": False, "mean_recurrence": 8, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(path, **own).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prompts = [text[:200] for text in islice(source_starts(2000, held_out=False), 64)]
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    return model, before, fit_heads(model, tokenizer, prompts, FitSettings(**SMALL)), tokenizer


def test_the_model_stays_as_it_is(fitted):
    model, before, _, _ = fitted
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters()) and model.decoding_heads is None


def test_drafts_and_guesses_get_better(fitted):
    model, _, result, _ = fitted
    assert result.heads.readout_depths == [1] and result.heads.fitted.depth == 8
    plain, better = result.drafts[1]
    assert better > plain
    assert result.extra[1][0] > 10 / model.config.vocab_size and result.extra[1][0] >= result.extra[1][1]
    assert result.calibration.threshold == result.heads.risk.threshold and result.heads.risk.tokens > 60
    assert result.calibration.chosen.upper <= 0.2 and result.calibration.chosen.recurrences < 8
    json.dumps(result.to_dict())


def test_fitted_heads_decode(fitted, tmp_path):
    model, _, result, tokenizer = fitted
    result.save(tmp_path / "new", model, tokenizer)
    assert (tmp_path / "new" / "tokenizer.json").is_file() and model.decoding_heads is None
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    inputs = tokenizer("def main():\n    ", return_tensors="pt")
    text = loaded.generate(**inputs, sampler="adaptive", exit_criterion="learned", seed=0, max_new_tokens=12)
    assert text.shape[1] > inputs.input_ids.shape[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"extra_tokens": -1}, "extra_tokens=-1"),
        ({"epsilon": 1.0}, "epsilon=1.0 must be between 0 and 1"),
        ({"draft_depths": [8]}, r"draft_depths=\[8\] must be below the full depth of 8"),
        ({"draft_depths": [0]}, "draft_depths=0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FitSettings(**settings).depths(8)


def test_too_little_text_is_refused(fitted):
    model, _, _, tokenizer = fitted
    with pytest.raises(ValueError, match="3 prompts are too few: pass at least 16"):
        fit_heads(model, tokenizer, ["a", "b", "c"], FitSettings(**SMALL))
    with pytest.raises(ValueError, match=r"The held-out prompts leave at most 32 tokens.*epsilon=0.01"):
        fit_heads(model, tokenizer, ["a"] * 16, FitSettings(**SMALL | {"epsilon": 0.01}))
    model.config.mean_recurrence = 1
    try:
        with pytest.raises(ValueError, match="mean_recurrence=1"):
            fit_heads(model, tokenizer, ["a"] * 16, FitSettings(**SMALL))
    finally:
        model.config.mean_recurrence = 8


def test_the_command(tmp_path):
    """It replaces heads that do not fit, which loading refuses."""
    shutil.copytree(bundled_checkpoint(), tmp_path / "own")
    facts = json.loads((tmp_path / "own" / "config.json").read_text()) | {"mean_recurrence": 4}
    (tmp_path / "own" / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="depth=32"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    options = ["--count", 24, "--max-new-tokens", 12, "--epochs", 1, "--epsilon", 0.3, "--extra-rank", 8]
    result = run("fit", tmp_path / "own", "--dataset", "worked", *options, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["saved"] == str(tmp_path / "own") and told["tokens"] > 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "own").decoding_heads.fitted.depth == 4
    taken = run("fit", tmp_path / "own", "--save", tmp_path)
    assert taken.exit_code == 2 and "is not empty" in taken.stderr
    nowhere = run("fit", "somebody/model")
    assert nowhere.exit_code == 2 and "pass --save FOLDER" in nowhere.stderr

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
from hf_diffusion_forcing.fitting.fit import fit_to
from hf_diffusion_forcing.fitting.own_text import Text, text_batches
from hf_diffusion_forcing.fitting.start import RIDGE, explained, fit_start, neighbours
from hf_diffusion_forcing.models.decoding_heads import DecodingHeads, FittedModel
from support import FAMILIES, ROOT
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
    assert result.heads.has_start and 0.3 < result.start < 1 and "start head predicts" in "\n".join(result.lines())
    json.dumps(result.to_dict())


def test_fitted_heads_decode(fitted, tmp_path):
    model, _, result, tokenizer = fitted
    result.save(tmp_path / "new", model, tokenizer)
    assert (tmp_path / "new" / "tokenizer.json").is_file() and model.decoding_heads is None
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new").eval()
    inputs = tokenizer("def main():\n    ", return_tensors="pt")
    text = loaded.generate(**inputs, sampler="adaptive", exit_criterion="learned", seed=0, max_new_tokens=12)
    assert text.shape[1] > inputs.input_ids.shape[1]


def test_the_start_head_is_the_best_map_of_its_rank(fitted):
    """Of full rank it is ridge regression; a lower rank explains less; the same texts give the same map."""
    model, _, _, _ = fitted
    ids = torch.randint(0, 1024, (6, 40), generator=torch.manual_seed(0))
    batches = text_batches(model, [Text(row.tolist(), 4) for row in ids], [1], 8, 2, 0, False)
    channels = model.config.n_embd
    tensors = [fit_start(model, batches, rank) for rank in (channels, channels, 8)]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    heads = [DecodingHeads(FittedModel.of(model.config), each) for each in tensors]
    shares = [explained(model, each, batches) for each in heads[1:]]
    assert 0 < shares[1] < shares[0] < 1
    pairs = [pair for batch in batches for pair in neighbours(model, batch)]
    e, left, last = (torch.cat(each).double() for each in zip(*pairs, strict=True))
    x, mean = torch.cat((e, left), dim=-1), last.mean(0)
    centred = x - x.mean(0)
    penalty = RIDGE * len(x) * centred.square().mean() * torch.eye(x.shape[1])
    best = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (last - mean))
    torch.testing.assert_close(heads[0].start(e, left), mean + centred @ best, atol=1e-4, rtol=1e-4)


def test_a_core_without_injected_embedding_gets_no_start_head():
    model = AutoModelForCausalLM.from_pretrained(FAMILIES["ouro"]).eval()
    ids = torch.randint(0, 100, (4, 20), generator=torch.manual_seed(0))
    batches = text_batches(model, [Text(row.tolist(), 4) for row in ids], [1], 2, 2, 0, False)
    settings = FitSettings(epochs=1, extra_tokens=0, progress=False)
    assert not fit_to(model, batches, [1], settings).has_start


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0"),
        ({"extra_tokens": -1}, "extra_tokens=-1"),
        ({"start_rank": -1}, "start_rank=-1"),
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

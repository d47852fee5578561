"""`verify`: the laws hold on every family, and a model that breaks one is found out."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing.evaluation.verification import compared, verify
from hf_diffusion_forcing.evaluation.verified_model import Text, VerifiedModel
from support import FAMILIES, FIXTURES
from support.commands import run
from support.matrix import cases

PROMPTS = [[3, 1, 4, 1, 5], [9, 2]]
ONE_PASS = "A text's logits are the same in one pass and token by token."
BATCH = "A row's text does not depend on its batch."
STOPS = "A text ends exactly at its end token or length."


def outcomes(model, law=None, max_new_tokens=3):
    result = verify(model, PROMPTS, max_new_tokens, progress=False)
    return {(v.law, v.sampler): v.outcome for v in result.verdicts if law in (None, v.law)}


@pytest.mark.parametrize("name", cases(FAMILIES, keep=["ouro"]))
def test_every_law_holds(name):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name]).eval()
    stored = model.generation_config.to_dict()
    found = outcomes(model, max_new_tokens=6)
    assert set(found.values()) <= {"holds", "not defined"}
    undefined = {sampler for (_, sampler), outcome in found.items() if outcome == "not defined"}
    assert undefined == (set() if model.has_injected_embedding else {"diffusion_forcing"})
    assert model.generation_config.to_dict() == stored


def test_a_model_that_looks_at_its_batch_is_found_out(tiny):
    recur = tiny.recur
    tiny.recur = lambda s, e, at, depth: recur(s, e, at, depth) + 0.5 * (len(at.positions.unique()) > 1)
    found = outcomes(tiny)
    assert found[ONE_PASS, "autoregressive"] == found[BATCH, "autoregressive"] == "broken"


def test_a_model_that_ends_late_is_found_out(tiny):
    generate = tiny.generate

    def late(ids, max_new_tokens, **settings):
        return generate(ids, max_new_tokens=max_new_tokens + (max_new_tokens == 1), **settings)

    tiny.generate = late
    assert set(outcomes(tiny, STOPS).values()) == {"broken"}


@pytest.mark.parametrize(
    ("margin", "dtype", "is_exact", "outcome"),
    [
        (1e-6, torch.float32, True, "rounding"),
        (0.5, torch.float32, True, "broken"),
        (0.5, torch.float32, False, "broken"),
        (0.5, torch.bfloat16, False, "rounding"),
    ],
)
def test_a_near_tie_is_no_fault(tiny, margin, dtype, is_exact, outcome):
    subject = VerifiedModel(tiny, PROMPTS, 4, 0)
    assert 0 < subject.rounding < 1e-4
    subject.rounding = 1e-5
    tiny.to(dtype)
    scores = torch.zeros(3, 61)
    scores[:, 7] = margin
    expected = Text([7, 7, 7], scores)
    assert compared(subject, [(0, expected, Text([7, 8, 1], scores))], is_exact)[0] == outcome
    assert compared(subject, [(0, expected, expected)], is_exact) == ("holds", "3 tokens are equal")
    assert compared(subject, [(0, expected, Text([7, 7], scores))], True)[0] == "broken"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": [[1, 2]]}, "at least two"),
        ({"prompts": [[1], []]}, "none empty"),
        ({"max_new_tokens": 1}, "max_new_tokens=1"),
        ({"max_new_tokens": 200}, "exceeds the context of 128"),
    ],
)
def test_bad_input(tiny, changes, words):
    with pytest.raises(ValueError, match=words):
        verify(tiny, **{"prompts": PROMPTS} | changes)


def test_the_command(tmp_path):
    report = tmp_path / "report.md"
    common = ("--max-new-tokens", 2, "--prompt", "1+2=", "--prompt", "7")
    result = run("verify", FIXTURES / "parcae-problems", *common, "--output", report, "--json")
    assert result.exit_code == 0, result.output
    assert {verdict["outcome"] for verdict in json.loads(result.stdout)["verdicts"]} == {"holds"}
    text = report.read_text()
    assert "| A row's text does not depend on its batch. | adaptive | holds |" in text and "torch" in text
    # It has no tokenizer.
    assert run("verify", FAMILIES["llama"], *common).exit_code == 2
    for wrong, words in {"report.txt": "must end in .json or .md", "missing/report.md": "there is no folder"}.items():
        refused = run("verify", "--output", tmp_path / wrong)
        assert refused.exit_code == 2 and words in refused.stderr

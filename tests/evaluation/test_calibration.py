"""A calibrated threshold: the bound against brute force, the choice, a real model, and what is refused."""

import json
from itertools import islice
from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hf_diffusion_forcing import LatentDifferenceCriterion
from hf_diffusion_forcing.command_line.app import app
from hf_diffusion_forcing.evaluation import calibration
from hf_diffusion_forcing.evaluation.calibration import calibrate, calibrate_prompts, fewest_tokens, upper_bound
from hf_diffusion_forcing.evaluation.inspection import inspect_recurrences
from hf_diffusion_forcing.evaluation.problems import problems
from support import ROOT

CALL = {"num_steps": 12, "epsilon": 0.1, "progress": False}


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0.5, 0.999))
def test_the_bound_is_exact(count, share, confidence):
    """At the bound, as few differing draws as these have the probability 1 - confidence."""
    differing = round(share * count)
    bound = upper_bound(differing, count, confidence)
    if differing == count:
        assert bound == 1
        return
    tail = sum(comb(count, k) * bound**k * (1 - bound) ** (count - k) for k in range(differing + 1))
    assert tail == pytest.approx(1 - confidence, rel=1e-6)
    assert differing / count < bound < upper_bound(differing + 1, count, confidence)


@pytest.mark.parametrize(("epsilon", "confidence"), [(0.01, 0.95), (0.05, 0.9), (0.3, 0.5), (0.001, 0.99)])
def test_the_fewest_tokens(epsilon, confidence):
    fewest = fewest_tokens(epsilon, confidence)
    assert upper_bound(0, fewest, confidence) <= epsilon < upper_bound(0, fewest - 1, confidence)


def test_the_confidence_is_kept():
    """Of many draws of texts, the chosen threshold's true share is above epsilon in about 5 % or less, but in some."""
    generator = torch.manual_seed(0)
    shares, epsilon, count = torch.linspace(0.01, 0.2, 20), 0.1, 300
    wrong = 0
    for _ in range(400):
        drawn = torch.rand(count, generator=generator)
        chosen = 0.0
        for share in shares.tolist():  # one sequence of nested events, as looser thresholds differ on more tokens
            if upper_bound(int((drawn < share).sum()), count, 0.95) > epsilon:
                break
            chosen = share
        wrong += chosen > epsilon
    assert 0 < wrong <= 0.08 * 400


@pytest.fixture(scope="module")
def texts(bundled):
    tokenizer = bundled[1]
    drawn = islice(problems(5, held_out=True, kind="worked"), 3)
    return [tokenizer(f"{each.prompt} {each.answer}", return_tensors="pt").input_ids for each in drawn]


def test_a_real_model(bundled, texts):
    """The counts are those of a run with that threshold, and the choice is the last before the first failure."""
    model, _ = bundled
    result = calibrate(model, texts, "latent_difference", **CALL)
    assert [each.threshold for each in result.tested] == sorted(each.threshold for each in result.tested)
    assert all(each.holds for each in result.tested[:-1]) and not result.tested[-1].holds
    assert result.threshold == result.tested[-2].threshold == result.chosen.threshold
    assert result.chosen.upper <= 0.1 < result.tested[-1].upper
    assert result.tokens == sum(map(torch.numel, texts))
    recurrences = [each.recurrences for each in result.tested]
    assert recurrences == sorted(recurrences, reverse=True)
    differing = spent = 0
    for row, ids in enumerate(texts):
        insight = inspect_recurrences(
            model,
            ids,
            num_steps=12,
            exit_criterion=LatentDifferenceCriterion(result.threshold),
            exit_threshold=None,
            seed=row,
        )
        exits = insight.exit_depths.clamp_max(12)
        differing += int((insight.readouts.gather(0, exits[None] - 1)[0] != insight.readouts[-1]).sum())
        spent += int(exits.sum())
    assert differing == result.chosen.differing
    assert result.chosen.recurrences == pytest.approx(spent / result.tokens)
    assert "95% confidence" in result.outcome
    json.dumps(result.to_dict())


def test_stricter_demands_never_loosen_the_threshold(bundled, texts):
    model, _ = bundled
    chosen = [
        calibrate(model, texts, epsilon=epsilon, confidence=confidence, num_steps=12, progress=False).threshold or 0
        for epsilon, confidence in ((0.03, 0.95), (0.1, 0.95), (0.1, 0.5), (0.3, 0.5))
    ]
    assert chosen == sorted(chosen) and chosen[0] < chosen[-1]


def test_none_holds_and_all_hold(bundled, texts):
    model, tokenizer = bundled
    result = calibrate(model, texts, thresholds=[1e6, 1e7], **CALL | {"epsilon": 0.01, "confidence": 0.5})
    assert result.threshold is None and len(result.tested) == 1 and result.chosen is None
    assert "No threshold of settling holds" in result.outcome
    with pytest.raises(ValueError, match="No threshold"):
        result.save("nowhere", model, tokenizer, "adaptive")
    result = calibrate(model, texts, thresholds=[1e-4, 1e-3], **CALL)
    assert result.threshold == 1e-3 and len(result.tested) == 2


def test_a_models_own_tokens(bundled):
    model, tokenizer = bundled
    prompts = [each.prompt for each in islice(problems(6, held_out=True, kind="worked"), 4)]
    result = calibrate_prompts(model, tokenizer, prompts, max_new_tokens=12, **CALL)
    assert 29 <= result.tokens <= 4 * 12 and result.threshold is not None


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"epsilon": 0}, ValueError, "epsilon=0 must be"),
        ({"epsilon": 1.5}, ValueError, "epsilon=1.5"),
        ({"epsilon": "small"}, TypeError, "epsilon='small' must be a number"),
        ({"confidence": 1}, ValueError, "confidence=1 must be"),
        ({"criterion": "fixed"}, ValueError, "criterion='fixed' does not compare a distance"),
        ({"criterion": {"any": ["kl"]}}, ValueError, "does not compare a distance"),
        ({"criterion": "setling"}, ValueError, "did you mean 'settling'"),
        ({"thresholds": []}, ValueError, "must be one or more increasing"),
        ({"thresholds": [0.2, 0.1]}, ValueError, "increasing"),
        ({"thresholds": [-1.0]}, ValueError, "thresholds=-1.0"),
        ({"texts": []}, ValueError, "texts is empty"),
        ({"epsilon": 0.001}, ValueError, "at least 2995 are needed"),
        ({"num_steps": 0}, ValueError, "num_steps=0"),
    ],
)
def test_bad_input(bundled, texts, monkeypatch, kwargs, error, message):
    model, _ = bundled
    if "num_steps" not in kwargs:
        monkeypatch.setattr(calibration, "inspect_recurrences", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(error, match=message):
        calibrate(model, **{"texts": texts, "progress": False, "epsilon": 0.1} | kwargs)


# --- the command ---


def command(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


FEW = ("--dataset", "worked", "--count", 4, "--max-new-tokens", 12, "--epsilon", 0.1, "--num-steps", 12)


def test_the_command_saves_what_it_found(tmp_path):
    folder = tmp_path / "calibrated"
    result = command(*FEW, "--save", folder, "--sampler", "adaptive", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    stored = json.loads((folder / "generation_config.json").read_text())
    criterion = {"name": "settling", "threshold": record["threshold"]}
    assert (stored["sampler"], stored["sampler_config"]) == ("adaptive", {"exit_criterion": criterion})
    # The stored sampler stays; the folder of the model itself is updated.
    result = command(folder, *FEW, "--exit-criterion", "kl", "--save", folder)
    assert result.exit_code == 0 and "kl with exit_threshold" in result.stdout
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.decoding_config().sampler_config.exit_criterion["name"] == "kl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epsilon", "2"], "epsilon=2"),
        (["--exit-criterion", "token_stability"], "does not compare a distance"),
        (["--count", "1"], "at least 299 are needed"),
        (["--save", "tests"], "not empty"),
        (["--save", "/tmp/new-folder"], "pass sampler= (--sampler)"),
        (["--save", "/tmp/new-folder", "--sampler", "speculative_wavefront"], "has no exit criterion"),
        (["--save", "/tmp/new-folder", "--sampler", "adaptiv"], "did you mean 'adaptive'"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(calibration, "inspect_prompts", None)  # nothing is decoded before
    result = command(*arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception
    assert message in " ".join(result.stderr.split())

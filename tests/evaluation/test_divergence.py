"""Where two samplers' texts part."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_diffusion_forcing.command_line.app import app
from hf_diffusion_forcing.evaluation.decoding import run_batch
from hf_diffusion_forcing.evaluation.divergence import compare_samplers
from hf_diffusion_forcing.evaluation.divergent_tokens import (
    KINDS,
    certainty,
    first_difference,
    readouts,
    token_kind,
)
from hf_diffusion_forcing.evaluation.task import Task
from hf_diffusion_forcing.settings.spelling import parse_sampler
from support import FIXTURES

CHECKPOINT = FIXTURES / "python-source"
BASELINE = "autoregressive:num_steps=8"
LOOSE = "diffusion_forcing:num_steps=8,inner_recurrence=1,exit_threshold=0.5"
ROOM = 16


@pytest.fixture(scope="module")
def source():
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(CHECKPOINT, padding_side="left")


@pytest.fixture(scope="module")
def task():
    return Task.from_python_source(6, length=80)


@pytest.fixture(scope="module")
def compared(source, task):
    return compare_samplers(*source, task, BASELINE, LOOSE, batch_size=3, max_new_tokens=ROOM, progress=False)


@pytest.fixture(scope="module")
def outputs(source, task):
    """The token ids of the baseline and of the other."""
    calls = [parse_sampler(sampler) | {"max_new_tokens": ROOM} for sampler in (BASELINE, LOOSE)]
    return [run_batch(*source, task.samples, kwargs, seed=0)["tokens"] for kwargs in calls]


def test_the_divergences_are_the_first_tokens_that_differ(source, outputs, compared):
    expected, found = outputs
    places = [first_difference(*pair) for pair in zip(expected, found, strict=True)]
    parted = {index: place for index, place in enumerate(places) if place is not None}
    assert len(parted) > 0 and {each.index: each.position for each in compared.divergences} == parted
    seen = [len(ids) if place is None else place + 1 for ids, place in zip(expected, places, strict=True)]
    assert len(compared.tokens) == sum(seen)
    assert sum(token.differs for token in compared.tokens) == len(parted)
    for classes in (compared.by_kind, compared.by_margin):
        assert [sum(counts) for counts in zip(*classes.values(), strict=True)] == [sum(seen), len(parted)]
    for each in compared.divergences:
        tokenizer = source[1]
        assert each.found == tokenizer.decode(found[each.index][each.position])
        assert each.expected_text.startswith(each.expected) and each.kind in KINDS
        assert each.rank > 1 and each.margin > 0 and each.entropy > 0 and each.expected_right is None


def test_what_the_model_says_at_full_depth_is_what_it_wrote(source, task, outputs):
    model, tokenizer = source
    config = model.decoding_config(**parse_sampler(BASELINE)).sampler_config
    for sample, ids in zip(task.samples, outputs[0], strict=True):
        logits = readouts(model, tokenizer, sample.prompt, ids, sample.index, config)
        assert logits.shape == (len(ids) + 1, model.config.padded_vocab_size)
        assert logits[:-1].argmax(-1).tolist() == ids


def test_exit_values_are_the_traces(compared):
    """What was committed had converged, or was at its budget; the first token comes from the prompt's pass."""
    assert sum(token.recurrences == 0 for token in compared.tokens) == 6
    spent = [token for token in compared.tokens if token.recurrences]
    assert all(token.exit_value < 0.5 or token.recurrences >= 8 for token in spent)
    assert any(token.exit_value > 0.03 for token in spent)


def test_the_lossless_sampler_parts_nowhere(source, task):
    lossless = "speculative_wavefront:num_steps=8,draft_depth=2"
    result = compare_samplers(*source, task, BASELINE, lossless, max_new_tokens=ROOM, progress=False)
    assert not result.divergences and "6 texts are the same, 0 differ" in result.to_markdown()


def test_answers(bundled):
    network, tokenizer = bundled
    tokenizer.padding_side = "left"
    task = Task.from_problems("mental", 6)
    result = compare_samplers(
        network, tokenizer, task, sampler="autoregressive:num_steps=2", max_new_tokens=6, progress=False
    )
    assert [expected for expected, _ in result.right] == [True] * 6
    lost = sum(not found for _, found in result.right)
    assert lost > 0 and f"{lost} with the baseline alone" in result.to_markdown()
    assert {each.kind for each in result.divergences} == {"digit"}
    assert not [each for each in result.divergences if each.found_right]


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_first_difference(expected, found):
    place = first_difference(expected, found)
    if place is None:
        assert expected == found
    else:
        assert expected[:place] == found[:place] and expected[place : place + 1] != found[place : place + 1]


def test_certainty_and_kinds(bundled):
    entropy, margin = certainty(torch.tensor([0.5, 0.25, 0.25]).log())
    assert entropy == pytest.approx(1.5 * math.log(2)) and margin == pytest.approx(math.log(2))
    assert certainty(torch.tensor([0.0, float("-inf"), 0.0]))[0] == pytest.approx(math.log(2))
    tokenizer = bundled[1]
    ids = [*tokenizer(" 7. The\n").input_ids, tokenizer.eos_token_id]
    kinds = [token_kind(tokenizer, ids, place) for place in range(len(ids) + 1)]
    assert kinds[-2:] == ["end of text", "end of text"] and {"digit", "punctuation", "word"} <= set(kinds)


def test_the_command(tmp_path):
    arguments = ["diff", str(CHECKPOINT), "--dataset", "python-source", "--count", "3", "--max-new-tokens", "12"]
    arguments += ["--dtype", "float32", "--sampler", LOOSE, "--baseline", BASELINE, "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    report = (tmp_path / "out" / "difference.md").read_text()
    assert report.strip() == result.stdout.strip() and "token of the baseline" in report
    record = json.loads((tmp_path / "out" / "difference.json").read_text())
    assert record["diverged"] == len(record["divergences"]) and record["settings"]["sampler"] == LOOSE
    assert (tmp_path / "out" / "difference.png").read_bytes().startswith(b"\x89PNG")
    for extra, message in (
        (["--baseline", "autoregresive"], "did you mean"),
        (["--output", str(tmp_path / "out" / "difference.md" / "x")], "cannot be written"),
        (["--count", "0"], "count=0"),
    ):
        wrong = CliRunner().invoke(app, arguments + extra)
        assert wrong.exit_code == 2 and message in wrong.stderr

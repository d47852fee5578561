"""lm-evaluation-harness as it is on PyPI, on local tasks of held-out problems (tests/fixtures/lm-eval)."""

import json
import sys
from itertools import islice

import pytest
import torch
from typer.testing import CliRunner

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.command_line.app import app
from hf_diffusion_forcing.evaluation.problems import problems
from support import ROOT

TASKS = "tests/fixtures/lm-eval"
ROWS = [json.loads(line) for line in (ROOT / TASKS / "problems.jsonl").read_text().splitlines()]


def run(*arguments):
    return CliRunner().invoke(app, ["lm-eval", *map(str, arguments)])


def harness(monkeypatch, folder, tasks, *arguments):
    """Scores, and the logged samples of each task."""
    monkeypatch.chdir(ROOT)  # the task files name their data from here
    model = ("--model", "hf", "--model_args", f"pretrained={bundled_checkpoint()},dtype=float32", "--device", "cpu")
    output = ("--tasks", tasks, "--include_path", TASKS, "--output_path", folder, "--log_samples")
    result = run(*model, *output, *arguments)
    assert result.exit_code == 0, result.output
    (written,) = folder.rglob("results_*.json")
    samples = {}
    for task in tasks.split(","):
        (path,) = folder.rglob(f"samples_{task}_2*.jsonl")
        samples[task] = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return json.loads(written.read_text())["results"], samples


def texts(samples):
    return [sample["resps"][0][0] for sample in samples]


def test_the_problems_of_the_fixture_are_held_out():
    chosen = list(islice(problems(11, held_out=True), len(ROWS)))
    assert [(row["prompt"], row["answer"]) for row in ROWS] == [(p.prompt, p.result) for p in chosen]
    assert all(row["answer"] in row["choices"] for row in ROWS)


@pytest.mark.full
@pytest.mark.usefixtures("few_tasks")
def test_one_position_at_full_depth_scores_as_autoregression(monkeypatch, tmp_path):
    """The harness's stopping criteria, batches and left padding change nothing in the second law."""
    common = ("--batch_size", 4, "--gen_kwargs")
    forcing = "sampler=diffusion_forcing,wavefront=1,inner_recurrence=8,num_steps=8,kv_sharing=last,seed=5"
    scores, samples = harness(monkeypatch, tmp_path / "forcing", "held_out", *common, forcing)
    plain = "sampler=autoregressive,num_steps=8,kv_sharing=last,seed=5"
    expected, references = harness(monkeypatch, tmp_path / "plain", "held_out", *common, plain)
    assert scores == expected
    assert texts(samples["held_out"]) == texts(references["held_out"])
    assert scores["held_out"]["exact_match,last-number"] == 1.0


@pytest.mark.usefixtures("few_tasks")
def test_a_wavefront_and_loglikelihoods(monkeypatch, tmp_path, bundled):
    """Values of all kinds reach generate(); choices are scored by forward(), in right-padded batches."""
    settings = ("sampler=diffusion_forcing,wavefront=16", "exit_threshold=0.03,adaptive_prefill=true,seed=0")
    settings += ("exit_criterion='latent_difference'",)
    tasks = "held_out,held_out_choice"
    scores, samples = harness(monkeypatch, tmp_path, tasks, "--batch_size", 3, "--gen_kwargs", *settings)
    assert scores["held_out"]["exact_match,last-number"] == 1.0
    assert all(text.endswith(f" {row['answer']}.") for row, text in zip(ROWS, texts(samples["held_out"]), strict=True))
    assert all("Q:" not in text and "<|" not in text for text in texts(samples["held_out"]))

    model, tokenizer = bundled
    right = 0
    for row, sample in zip(ROWS, samples["held_out_choice"], strict=True):
        scored = []
        for choice, reported in zip(row["choices"], sample["filtered_resps"], strict=True):
            prompt = tokenizer(row["prompt"], return_tensors="pt").input_ids
            whole = tokenizer(f"{row['prompt']} {choice}", return_tensors="pt").input_ids
            with torch.no_grad():
                logits = model(whole[:, :-1]).logits.log_softmax(-1)
            target = whole[:, prompt.shape[1] :]
            scored.append(logits[:, -target.shape[1] :].gather(2, target[..., None]).sum().item())
            assert float(reported[0]) == pytest.approx(scored[-1], abs=0.02, rel=0.005)
        right += row["choices"][scored.index(max(scored))] == row["answer"]
    assert scores["held_out_choice"]["acc,none"] == right / len(ROWS)
    assert right > 0


@pytest.mark.usefixtures("few_tasks")
def test_a_wrong_setting_is_an_error_in_one_line(monkeypatch):
    monkeypatch.chdir(ROOT)
    path = f"pretrained={bundled_checkpoint()}"
    common = ("--model_args", path, "--device", "cpu", "--include_path", TASKS, "--tasks", "held_out", "--limit", 1)
    result = run(*common, "--gen_kwargs", "sampler=diffusion_forcing,wavefont=8")
    assert result.exit_code == 2
    assert "wavefont" in result.stderr and "did you mean 'wavefront'?" in result.stderr


def test_help_is_the_harnesss_own():
    pytest.importorskip("lm_eval")
    result = run("--help")
    assert result.exit_code == 0 and "lm-eval ls tasks" in result.output


def test_without_the_harness(monkeypatch):
    for name in ("lm_eval", "lm_eval.__main__"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("--tasks", "held_out")
    assert result.exit_code == 2 and 'pip install "hf-diffusion-forcing[lm-eval]"' in result.stderr

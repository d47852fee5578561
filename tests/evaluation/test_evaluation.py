"""Evaluation: what is reported is what was decoded, whoever decoded it and however often it was stopped."""

import csv
import io
import json
import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import hf_diffusion_forcing.evaluation
from hf_diffusion_forcing.evaluation.evaluator import evaluate_samplers
from hf_diffusion_forcing.evaluation.journal import Journal
from hf_diffusion_forcing.evaluation.metrics import EditDistance, ExactAnswer, TokenAgreement, wilson_interval
from hf_diffusion_forcing.evaluation.task import Sample, Task
from hf_diffusion_forcing.settings.spelling import parse_sampler
from support.commands import run

SAMPLERS = ["autoregressive:num_steps=4", "diffusion_forcing:preset=fast", "speculative_wavefront:num_steps=4"]
ARGUMENTS = {"batch_size": 2, "max_new_tokens": 8, "progress": False}
COMMAND = ["evaluate", "--dataset", "mental", "--count", "7", "--batch-size", "2", "--max-new-tokens", "8"]
COMMAND += [word for sampler in SAMPLERS for word in ("--sampler", sampler)]
TIMES = {"seconds", "tokens_per_second", "speedup"}


def counts(result):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in result.rows]


@pytest.fixture(scope="module")
def model(bundled):
    network, tokenizer = bundled
    tokenizer.padding_side = "left"
    return network, tokenizer


@pytest.fixture(scope="module")
def mental():
    return Task.from_problems("mental", 7)


@pytest.fixture(scope="module")
def measured(model, mental):
    return evaluate_samplers(*model, mental, SAMPLERS, **ARGUMENTS)


def test_the_result_is_what_generate_writes(model, mental, measured):
    network, tokenizer = model
    for name, kwargs in zip(SAMPLERS, map(parse_sampler, SAMPLERS), strict=True):
        for sample, record in zip(mental.samples, measured.samples, strict=True):
            inputs = tokenizer(sample.prompt, return_tensors="pt")
            ids = network.generate(**inputs, **kwargs, seed=sample.index, max_new_tokens=8)
            assert record["outputs"][name]["tokens"] == ids[0, inputs.input_ids.shape[1] :].tolist()
            assert record["outputs"][name]["right"] == mental.is_right(sample, record["outputs"][name]["text"])


def test_the_rows_add_up(measured):
    base, fast, lossless = measured.rows
    assert base["recurrences_per_token"] == 4 and base["speedup"] == base["token_agreement"] == 1
    assert lossless["token_agreement"] == lossless["same_text"] == 1 and lossless["edit_distance"] == 0
    assert 0 < fast["core_passes_per_token"] < base["core_passes_per_token"]
    for name, row in zip(SAMPLERS, measured.rows, strict=True):
        records = [sample["outputs"][name] for sample in measured.samples]
        assert row["tokens"] == sum(len(record["tokens"]) for record in records)
        assert row["accuracy"] == pytest.approx(sum(record["right"] for record in records) / 7)
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
    assert 0 < base["accuracy"] < fast["accuracy"] == 1, "four recurrences are too few for some of these, all are not"


def test_texts_do_not_depend_on_the_batch(model, mental, measured):
    alone = evaluate_samplers(*model, mental, SAMPLERS, **ARGUMENTS | {"batch_size": 7})
    assert alone.samples == measured.samples


def test_what_is_saved(measured, tmp_path):
    measured.save(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(measured.to_dict()))
    with (tmp_path / "results.csv").open() as file:
        assert [row["sampler"] for row in csv.DictReader(file)] == SAMPLERS
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(measured.samples))
    assert all(f"| {name} |" in (tmp_path / "results.md").read_text() for name in SAMPLERS)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(measured.table())
    assert "same" in (text := console.export_text()) and max(map(len, text.splitlines())) <= 80


def test_a_run_is_not_measured_twice(model, mental, measured, tmp_path):
    """Torn in its last line, it goes on with the batches that are missing."""
    call = ARGUMENTS | {"output": tmp_path / "run"}
    whole = evaluate_samplers(*model, mental, SAMPLERS, **call)
    assert counts(whole) == counts(measured) and whole.samples == measured.samples
    journal = tmp_path / "run" / "journal-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    for kept in (b"".join(lines), b"".join(lines[:2]) + lines[2][:50], b""):
        journal.write_bytes(kept)
        again = evaluate_samplers(*model, mental, SAMPLERS, **call)
        assert again.samples == measured.samples and counts(again) == counts(measured)
        assert len(journal.read_bytes().splitlines()) == 4
        assert journal.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert evaluate_samplers(*model, mental, SAMPLERS, **call).rows == again.rows, "times are those of the journal"
    with pytest.raises(ValueError, match=r"batch_size=2, where this one has 3.*overwrite"):
        evaluate_samplers(*model, mental, SAMPLERS, **call | {"batch_size": 3})
    other = Task.from_problems("mental", 7, seed=1)
    with pytest.raises(ValueError, match=r"task\.content"):
        evaluate_samplers(*model, other, SAMPLERS, **call)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["rows"] == again.rows
    replaced = evaluate_samplers(*model, other, SAMPLERS, overwrite=True, **call)
    assert replaced.samples != measured.samples and len(journal.read_bytes().splitlines()) == 4


def test_other_weights_are_another_run(tmp_path):
    there = {"model": {"weights": "a"}, "seed": 0}
    Journal(tmp_path / "run", there).begin()
    Journal(tmp_path / "run", there)
    with pytest.raises(ValueError, match=r"model\.weights='a', where this one has 'b' \(and 1 more\)"):
        Journal(tmp_path / "run", {"model": {"weights": "b"}, "seed": 1})
    (tmp_path / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="no record of a run"):
            Journal(tmp_path, there, overwrite)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def launch(processes, output):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--standalone", "-m", "hf_diffusion_forcing", *COMMAND, "--output", str(output), "--json"]
    # Elsewhere: -m would find the package in the working directory before the installed one.
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=output.parent)


@pytest.mark.full
def test_two_processes_killed_and_resumed(model, mental, measured, tmp_path):
    """Killed in the middle; then two processes, and one, each find the texts and counts of one that was not."""
    began = launch(2, tmp_path / "run")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("journal-*.jsonl")) or not Journal(tmp_path / "run", {}, True).read():
        assert began.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    workers = psutil.Process(began.pid).children(recursive=True)
    for process in (*workers, began):
        process.kill()
    psutil.wait_procs(workers)
    began.communicate()
    left = Journal(tmp_path / "run", {}, overwrite=True).read()
    assert not (tmp_path / "run" / "results.json").exists()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (tmp_path / "run").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())

    resumed = launch(2, tmp_path / "run")
    out, err = resumed.communicate(timeout=200)
    assert resumed.returncode == 0, err
    records = Journal(tmp_path / "run", {}, overwrite=True).read()
    assert sorted(record["batch"] for record in records) == [0, 1, 2, 3]
    assert all(record in records for record in left)
    assert len(list((tmp_path / "run").glob("journal-*.jsonl"))) == 2
    rows = json.loads(out)["rows"]
    expected = json.loads(json.dumps(counts(measured)))
    assert [{key: value for key, value in row.items() if key not in TIMES} for row in rows] == expected
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(measured.samples))

    alone = evaluate_samplers(*model, mental, SAMPLERS, output=copy, **ARGUMENTS)
    assert alone.samples == measured.samples and counts(alone) == counts(measured)


SHARDED = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig
from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.evaluator import evaluate_samplers
from hf_diffusion_forcing.evaluation.task import Task

model = AutoModelForCausalLM.from_pretrained(bundled_checkpoint(), distributed_config=DistributedConfig(tp_plan="auto"))
assert model.tp_size == 2
tokenizer = AutoTokenizer.from_pretrained(bundled_checkpoint(), padding_side="left")
task, (output, samplers, arguments) = Task.from_problems("mental", 7), map(json.loads, sys.argv[1:])
evaluate_samplers(model.eval(), tokenizer, task, samplers, output=output, **arguments)
"""


@pytest.mark.slow
def test_a_model_split_over_two_processes(measured, tmp_path):
    """Its processes decode every batch together: one journal, and the texts of a whole model."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(tmp_path / "sharded.py"), *map(json.dumps, (str(tmp_path / "run"), SAMPLERS, ARGUMENTS))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "run").glob("journal-*")] == ["journal-0.jsonl"]
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == json.loads(json.dumps(measured.samples))


def test_prompts_without_references(model):
    task = Task("prompts", [Sample("Q: Start at 3 + 2. Last digit?\nA:", None, 0)])
    result = evaluate_samplers(*model, task, {"plain": {"sampler": "autoregressive"}}, max_new_tokens=4, progress=False)
    assert result.rows[0]["accuracy"] is None and result.cells()[0][1] == "tokens\n/s" and not result.warnings


def test_a_pattern_that_finds_nothing_is_said(model):
    samples = [Sample("Q: Start at 3 + 2. Last digit?\nA:", "it is 5", 0)]
    task = Task("prompts", samples, r"#### (\d+)")
    result = evaluate_samplers(*model, task, ["autoregressive"], max_new_tokens=4, progress=False)
    assert "matches 0 of 1 outputs" in result.warnings[0] and "1 of 1 references" in result.warnings[1]
    assert result.to_markdown().count("**Note**") == 2


def test_an_output_ends_at_a_stop(model):
    task = Task.from_problems("worked", 2)
    whole = evaluate_samplers(*model, task, SAMPLERS[:2], max_new_tokens=40, progress=False)
    cut = evaluate_samplers(*model, task, SAMPLERS[:2], max_new_tokens=40, progress=False, stop_strings=[" with"])
    for name in SAMPLERS[:2]:
        for long, short in zip(whole.outputs(name, "texts"), cut.outputs(name, "texts"), strict=True):
            assert short.endswith(" with") and long.startswith(short)


def test_the_extra_is_asked_for_by_name(monkeypatch, model, mental):
    """(tests/tools/test_lazy_import.py has the package without it.)"""
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    monkeypatch.delitem(sys.modules, "hf_diffusion_forcing.evaluation.metrics")
    monkeypatch.delattr(hf_diffusion_forcing.evaluation, "metrics")
    with pytest.raises(ImportError, match=r"hf-diffusion-forcing\[eval\]"):
        evaluate_samplers(*model, mental, SAMPLERS, **ARGUMENTS)


def test_metrics():
    texts, references = ["The answer is 4.", "4", "no idea"], ["4", "#### 5", "#### 6"]
    exact = ExactAnswer().compute(predictions=texts, references=references, answer_pattern=r"(\d+)")
    assert exact["exact_answer"] == 1 / 3 and exact["answered"] == 2 / 3
    agreement = TokenAgreement().compute(predictions=[[1, 2, 3], [5]], references=[[1, 9, 3, 4], [5]])
    assert agreement == {"token_agreement": 3 / 5, "same": 1 / 2}
    assert EditDistance().compute(predictions=["kitten", ""], references=["sitting", ""]) == {"edit_distance": 3 / 14}
    assert EditDistance().features["predictions"].dtype == "string"


@given(st.integers(1, 400), st.floats(0, 1))
def test_wilson(count, share):
    right = round(share * count)
    low, high = wilson_interval(right, count)
    assert 0 <= low <= right / count + 1e-9 and right / count - 1e-9 <= high <= 1 and low < high
    # Its ends solve (p - share)² = z² p (1 - p) / n.
    for p in (low, high):
        assert (p - right / count) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / count, abs=1e-6)


def test_spelling():
    assert parse_sampler("autoregressive") == {"sampler": "autoregressive"}
    text = "diffusion_forcing:preset=fast,exit_criterion={name: kl, threshold: 0.01},adaptive_prefill=true,headway=2"
    assert parse_sampler(text) == {
        "sampler": "diffusion_forcing",
        "sampler_preset": "fast",
        "exit_criterion": {"name": "kl", "threshold": 0.01},
        "adaptive_prefill": True,
        "headway": 2,
    }
    assert parse_sampler("adaptive:exit_threshold=1e-2,kv_sharing=none")["exit_threshold"] == 0.01


WRONG = [
    (["--sampler", "diffusion"], "did you mean"),
    (["--sampler", "diffusion_forcing,wavefront=3"], "after a colon"),
    (["--sampler", "diffusion_forcing:wavefront=0"], "wavefront=0"),
    (["--sampler", "diffusion_forcing:wavefrnt=3"], "wavefront"),
    (["--sampler", "diffusion_forcing:headway=1,headway=2"], "twice"),
    (["--sampler", "diffusion_forcing:headway="], "without a value"),
    (["--sampler", "diffusion_forcing:headway={"], "neither JSON nor YAML"),
    (["--sampler", "autoregressive:preset=fast"], "sampler='diffusion_forcing'"),
    (["--sampler", "autoregressive:seed=1"], "leave it out"),
    (["--sampler", "adaptive", "--sampler", "adaptive"], "twice"),
    (["--dataset", "{data}/missing.csv"], "missing.csv does not exist"),
    (["--dataset", "{data}/rows.csv"], "'prompt'"),
    (["--dataset", "{data}/rows.csv", "--prompt-template", "{q}", "--answer-pattern", "("], "not a regular expression"),
    (["--dataset", "{data}/rows.csv", "--prompt-template", "{q}", "--answer-pattern", "x"], "no group"),
    (["--dataset", "{data}/rows.csv", "--prompt-template", "{q}", "--split", "test"], "test"),
    (["--dataset", "{data}/rows.csv", "--prompt-template", "{q}", "--split", "train[:0]"], "no rows"),
    (["--dataset", "{data}/rows.csv", "--prompt-template", "{q}", "--config", "main"], "has no config"),
    (["--answer-pattern", "(x)"], "has its own"),
    (["--count", "0"], "count=0"),
    (["--output", "{data}/rows.csv/run"], "cannot be written"),
    (["--output", "{data}"], "no record of a run"),
    (["--max-new-tokens", "100000"], "fewer new tokens"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=lambda value: " ".join(value)[:60])
def test_bad_arguments_say_what_to_do(tmp_path, arguments, message):
    (tmp_path / "rows.csv").write_text("q,a\nOne?,1\n")
    before = sorted(tmp_path.rglob("*"))
    if "--output" not in arguments:
        arguments = [*arguments, "--output", "{data}/out"]
    result = run("evaluate", *(word.replace("{data}", str(tmp_path)) for word in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr and isinstance(result.exception, SystemExit)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command(tmp_path):
    rows = [{"question": "Start at 3 + 2. Last digit?", "answer": "#### 5"}] * 2
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    result = run(
        *("evaluate", "--dataset", tmp_path / "rows.json", "--prompt-template", r"Q: {question}\nA:"),
        *("--reference-column", "answer", "--answer-pattern", r"(\d+)", "--sampler", "autoregressive"),
        *("--sampler", "diffusion_forcing:preset=fast", "--max-new-tokens", 6, "--output", tmp_path / "run"),
    )
    assert result.exit_code == 0, result.stderr
    assert "100.0%" in result.stdout and "\033" not in result.stdout
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("run.json", "journal-0.jsonl", "results.json", "results.csv", "results.md", "samples.jsonl")
    }

"""The command `benchmark` and what it is made of; no time is asserted."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing.evaluation.benchmark import COLUMNS, Case, benchmark, measure
from hf_diffusion_forcing.evaluation.speed_rows import part_bytes
from support import FAMILIES
from support.commands import run
from support.matrix import cases

PROMPTS = [torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[9, 2]])]
SAMPLERS = {
    "plain": {"sampler": "autoregressive"},
    "lossless": {"sampler": "speculative_wavefront"},
    "adaptive": {"sampler": "adaptive", "exit_threshold": 0.0},
}


def test_rows(tiny):
    result = benchmark(tiny, PROMPTS, SAMPLERS, max_new_tokens=12, repeats=1, progress=False)
    assert [row["sampler"] for row in result.rows] == list(SAMPLERS)
    plain, lossless, adaptive = result.rows
    assert plain["core_passes_per_token"] == 6 and lossless["core_passes_per_token"] <= 6
    assert plain["equal_share"] == lossless["equal_share"] == 1
    assert adaptive["core_passes_per_token"] == 6  # nothing converges
    assert all(row["speedup"] > 0 and row["kv_bytes"] > 0 for row in result.rows)
    headings, rows = result.cells()
    assert len(headings) == len(COLUMNS) and all(len(cells) == len(headings) for cells in rows)
    assert json.loads(json.dumps(result.to_dict()))["settings"]["samplers"] == SAMPLERS
    assert "| lossless |" in result.to_markdown() and result.settings["versions"]["torch"] in result.to_markdown()


@pytest.mark.parametrize("name", cases(FAMILIES, keep=["huginn", "hrm_text"]))
def test_the_verbs_read_all_linear_weights(name):
    """Each once in a pass, but those of HRM-Text's L stack once per pass of it."""
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name]).eval()
    parts = part_bytes(model)
    linears = {k: 4 * m.weight.numel() for k, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    again = (
        (model.config.L_cycles - 1) * sum(b for k, b in linears.items() if ".L_module." in k) if "hrm" in name else 0
    )
    gate = sum(size for name, size in linears.items() if "exit_gate" in name)
    assert sum(parts.values()) == sum(linears.values()) + again - gate
    assert parts["recur"] > 0 and (parts["embed"] > 0) == model.has_injected_embedding


def test_a_case_with_a_prompt_of_its_own(tiny):
    prompt = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    found = measure(tiny, PROMPTS[:1], {"long": Case(SAMPLERS["adaptive"], prompt)}, SAMPLERS["plain"], 1, 4, False)
    expected = tiny.generate(prompt, **SAMPLERS["adaptive"], seed=0, max_new_tokens=4)[0, 7:].tolist()
    assert found["texts"] == {"long": [expected]}
    assert found["rows"][0]["equal_share"] is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": []}, "0 prompts"),
        ({"samplers": {}}, "0 samplers"),
        ({"samplers": {"x": {"sampler": "adaptive", "num_steps": 0}}}, "num_steps=0"),
        ({"repeats": 0}, "repeats=0"),
        ({"max_new_tokens": 1}, "max_new_tokens=1"),
    ],
)
def test_bad_input(tiny, changes, words):
    with pytest.raises(ValueError, match=words):
        benchmark(tiny, **{"prompts": PROMPTS, "samplers": SAMPLERS} | changes)


def test_the_command(tmp_path):
    file = tmp_path / "speed.json"
    short = ("benchmark", "--dataset", "mental", "--count", 1, "--repeats", 1, "--max-new-tokens", 6)
    result = run(*short, "--sampler", "autoregressive:num_steps=2", "--sampler", "adaptive", "--output", file)
    assert result.exit_code == 0, result.output
    assert "adaptive" in result.stdout and "GB/s" in result.stdout
    record = json.loads(file.read_text())
    assert [row["sampler"] for row in record["rows"]] == ["autoregressive:num_steps=2", "adaptive"]
    assert record["settings"]["packed"] == []
    result = run(*short, "--sampler", "autoregressive:num_steps=2", "--pack", "same", "--json")
    assert json.loads(result.stdout)["settings"]["packed"] == ["torch.float32"]
    assert run("benchmark", "--output", tmp_path / "speed.csv").exit_code == 2

"""The command, as a user or a pipe runs it."""

import json
import subprocess
import sys

import pytest
from conftest import HUGINN_MINI
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from hf_diffusion_forcing.command_line.app import app

PROMPT = "Q: Start at 3 + 2. Last digit?\nA:"


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_main_job_piped():
    """A process of its own, as a shell starts it."""
    command = [sys.executable, "-m", "hf_diffusion_forcing"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "\033" not in result.stdout
    for words in ("autoregressive", "diffusion_forcing", "speedup", "equal", "The answer is"):
        assert words in result.stdout


def test_generate():
    plain = run("generate", "--prompt", PROMPT, "--max-new-tokens", 6)
    assert plain.exit_code == 0, plain.stderr
    assert "\033" not in plain.stdout
    record = json.loads(run("generate", "--prompt", PROMPT, "--max-new-tokens", 6, "--json").stdout)
    assert record["text"].strip() == plain.stdout.strip()
    assert record["stats"]["ticks"] == record["stats"]["core_passes"] / 4
    autoregressive = json.loads(
        run("generate", "--prompt", PROMPT, "--sampler", "autoregressive", "--max-new-tokens", 6, "--json").stdout
    )
    assert autoregressive["text"] == record["text"]


def test_an_automatic_wavefront_and_a_preset():
    common = ("generate", "--prompt", PROMPT, "--max-new-tokens", 6, "--json")
    record = json.loads(run(*common, "--wavefront", "auto").stdout)
    assert record["settings"]["wavefront"] == "auto" and record["stats"]["wavefront"] >= 4
    assert json.loads(run(*common, "--preset", "fast").stdout)["stats"]["inner_recurrence"] == 1
    wrong = run(*common, "--wavefront", "wide")
    assert wrong.exit_code == 2 and "neither a number" in wrong.stderr


def test_compare():
    record = json.loads(run("compare", "--prompt", PROMPT, "--max-new-tokens", 8, "--json").stdout)
    assert set(record) == {"autoregressive", "diffusion_forcing", "speculative_wavefront"}
    assert record["autoregressive"]["speedup"] == record["autoregressive"]["equal_share"] == 1.0
    assert record["speculative_wavefront"]["equal_share"] == 1.0
    assert record["diffusion_forcing"]["core_passes"] < record["autoregressive"]["core_passes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wavefront", "0"], "wavefront=0"),
        (["--exit-threshold", "nan"], "exit_threshold=nan"),
        (["--sampler", "diffusion"], "did you mean"),
        (["--num-steps", "2", "--inner-recurrence", "4"], "inner_recurrence=4 is more than num_steps=2"),
        (["--sampler", "autoregressive", "--wavefront", "4"], "wavefront=4 is not a setting of"),
        (["--max-new-tokens", "9999"], "max_new_tokens <="),
    ],
)
def test_bad_settings_say_what_to_do(arguments, message):
    result = run("generate", "--prompt", PROMPT, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_an_empty_prompt():
    result = run("generate", "--prompt", "")
    assert result.exit_code == 2 and "empty" in result.stderr


def test_a_model_that_is_not_recurrent_depth(tmp_path, bundled):
    GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=16, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    bundled[1].save_pretrained(tmp_path)
    result = run("generate", tmp_path, "--prompt", "hi")
    assert result.exit_code == 2
    assert "gpt2" in result.stderr and "recurrent-depth" in result.stderr


def test_missing_and_damaged_checkpoints(tmp_path, bundled):
    result = run("generate", tmp_path / "nothing", "--prompt", "hi")
    assert result.exit_code == 2 and "nothing" in result.stderr
    bundled[1].save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((HUGINN_MINI / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((HUGINN_MINI / "model.safetensors").read_bytes()[:5000])
    result = run("generate", tmp_path, "--prompt", "hi")
    assert result.exit_code == 2 and "could not be loaded" in result.stderr

"""The command, as a user or a pipe runs it."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
import typer
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from hf_diffusion_forcing.command_line import demo
from hf_diffusion_forcing.command_line.app import app
from hf_diffusion_forcing.command_line.sampler_options import (
    PlainSettings,
    chosen_sampler,
    option_of,
    owners,
    setting_names,
)
from hf_diffusion_forcing.command_line.serve_options import AccessOptions, EngineOptions, ListenOptions
from hf_diffusion_forcing.settings.sampler_config import SAMPLER_CONFIGS, field_help
from hf_diffusion_forcing.settings.spelling import parse_sampler
from support import HUGINN_MINI
from support.commands import run

PROMPT = "Q: Start at 3 + 2. Last digit?\nA:"


def test_the_main_job_piped(monkeypatch):
    """On fewer problems."""
    monkeypatch.setattr(demo, "SHOWN", 1)
    monkeypatch.setattr(demo, "COMPARED", 2)
    result = run()
    assert result.exit_code == 0, result.stderr
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
    assert record["settings"]["wavefront"] == "auto" and isinstance(record["stats"]["wavefront"], int)
    assert json.loads(run(*common, "--preset", "fast").stdout)["stats"]["inner_recurrence"] == 1
    record = json.loads(run(*common, "--preset", "auto", "--lossless").stdout)
    assert record["stats"]["decisions"][0]["sampler"] == "speculative_wavefront"
    spelled = json.loads(run(*common, "--sampler", "speculative_wavefront:preset=auto,lossless=true").stdout)
    assert spelled["text"] == record["text"]
    wrong = run(*common, "--preset", "fast", "--lossless")
    assert wrong.exit_code == 2 and "lossless=True" in wrong.stderr
    wrong = run(*common, "--wavefront", "wide")
    assert wrong.exit_code == 2 and "wavefront='wide' is unknown: use 'auto' or a number" in wrong.stderr


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
        (["--exit-threshold", "nan"], "exit_threshold='nan' must be a number"),
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


# --- the options ---


def click_commands():
    """By name, the commands as typer made them; `lm-eval` leaves all of its options to the harness."""
    made = typer.main.get_command(app).commands
    return {name: command for name, command in made.items() if name != "lm-eval"}


def options(name):
    return {parameter.name for parameter in click_commands()[name].params}


def test_the_commands():
    expected = {
        "demo",
        "generate",
        "compare",
        "benchmark",
        "estimate",
        "serve",
        "map",
        "evaluate",
        "diff",
        "inspect",
        "tune",
        "calibrate",
        "fit",
        "report",
        "verify",
        "export",
        "push",
        "convert",
        "widen",
    }
    assert set(click_commands()) == expected
    listed = run("--help").stdout
    for name in (*expected, "lm-eval"):
        assert re.search(rf"^\W+{name}\s+[A-Z]", listed, re.MULTILINE), name


def test_help_needs_neither_torch_nor_transformers():
    code = """
import sys
from typer.testing import CliRunner
from hf_diffusion_forcing.command_line.app import app

for name in [None, *sys.argv[1:]]:
    result = CliRunner().invoke(app, [*([name] if name else []), "--help"])
    assert result.exit_code == 0 and "Usage" in result.stdout, name
    heavy = {"torch", "transformers", "matplotlib", "datasets"} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    names = list(click_commands())
    result = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_every_setting_of_every_sampler_is_an_option():
    """Of the commands that decode by one configuration; their own options are few."""
    settings = {name for config_class in SAMPLER_CONFIGS.values() for name in config_class.fields()}
    assert set(setting_names()) == settings - {"seed"}
    of_serve = {field.name for group in (ListenOptions, AccessOptions, EngineOptions) for field in fields(group)}
    own = {
        "generate": {"model", "dtype", "prompt", "sampler", "max_new_tokens", "seed", "as_json"},
        "compare": {"model", "dtype", "prompt", "sampler", "max_new_tokens", "as_json"},
        "serve": {"model", "sampler", "seed", "device", "dtype", "pack", "plan", *of_serve},
        "report": {"model", "dtype", "prompt", "html", "sampler", "max_new_tokens", "seed"},
    }
    assert options("inspect") >= {"num_steps", "exit_criterion", "exit_threshold", "state_scale"}
    for name, others in own.items():
        assert options(name) == (settings | {"preset", "lossless"} | others) - ({"seed"} - others), name
    assert {field.name for field in fields(PlainSettings)} == settings - {"seed"} | {"preset", "lossless"}


def test_the_help_of_a_setting_is_its_docstring():
    shown = " ".join(run("generate", "--help").stdout.replace("│", " ").split())
    assert "Default: 32." in shown and "Default: latent_difference." in shown
    for name in setting_names():
        said = field_help(owners(name)[0], name).replace("`", "").removesuffix(".")
        assert said and " ".join(option_of(name).__metadata__[0].help.replace("\\", "").split()).startswith(said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--prompt", "hi"],
        ["compare"],
        ["serve"],
        ["report"],
        ["evaluate"],
        ["diff"],
        ["export", "nowhere", "nowhere/out"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_sampler_is_spelled_in_one_way(arguments):
    """It is checked before a model is loaded, and says the same everywhere."""
    for spelling, message in (
        ("diffusion_forcing:wavefont=8", "did you mean 'wavefront'"),
        ("diffusion", "did you mean 'diffusion_forcing'"),
        ("diffusion_forcing:preset=slow", "sampler_preset='slow' is unknown"),
        ("diffusion_forcing:wavefront=8,wavefront=8", "twice"),
    ):
        result = run(*arguments, "--sampler", spelling)
        assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
        assert message in result.stderr, spelling


def test_options_are_another_spelling():
    spelled = parse_sampler("diffusion_forcing:preset=fast,wavefront=8,exit_criterion={name: kl, threshold: 0.1}")
    options = PlainSettings(preset="fast", wavefront=8, exit_criterion={"name": "kl", "threshold": 0.1})
    assert chosen_sampler(None, options) == chosen_sampler("diffusion_forcing", options) == spelled
    assert chosen_sampler("diffusion_forcing:wavefront=8", PlainSettings(headway=2)) == {
        "sampler": "diffusion_forcing",
        "wavefront": 8,
        "headway": 2,
    }
    short = ("--prompt", PROMPT, "--max-new-tokens", 4, "--json")
    plain = run("generate", *short, "--wavefront", 8, "--exit-criterion", "{name: kl, threshold: 0.1}")
    whole = run(
        "generate", *short, "--sampler", "diffusion_forcing:wavefront=8,exit_criterion={name: kl, threshold: 0.1}"
    )
    records = [json.loads(result.stdout) for result in (plain, whole)]
    assert records[0]["text"] == records[1]["text"] and records[0]["stats"] == records[1]["stats"]
    assert records[0]["settings"] == records[1]["settings"]


def test_a_setting_is_given_once():
    result = run("generate", "--prompt", PROMPT, "--sampler", "diffusion_forcing:wavefront=8", "--wavefront", 4)
    assert result.exit_code == 2 and "wavefront is given twice" in result.stderr


def test_compare_takes_samplers_and_settings_for_those_that_have_them():
    common = ("compare", "--prompt", PROMPT, "--max-new-tokens", 6, "--json", "--num-steps", 8)
    samplers = ("--sampler", "autoregressive", "--sampler", "diffusion_forcing:wavefront=4")
    record = json.loads(run(*common, *samplers, "--headway", 2).stdout)
    assert [each["settings"] for each in record.values()] == [
        {"seed": 0, "sampler": "autoregressive", "num_steps": 8},
        {"seed": 0, "sampler": "diffusion_forcing", "wavefront": 4, "num_steps": 8, "headway": 2},
    ]
    one = json.loads(run(*common[:-1], 1).stdout)
    assert list(one) == ["autoregressive", "diffusion_forcing"]
    wrong = run(*common, *samplers, "--draft-depth", 2)
    assert wrong.exit_code == 2 and "but of speculative_wavefront" in wrong.stderr
    wrong = run(*common, *samplers, "--preset", "lossless")
    assert wrong.exit_code == 2 and "add --sampler speculative_wavefront" in wrong.stderr


def test_inspect(tmp_path):
    """Prompts, a file and standard input; a table, a figure and the numbers."""
    (tmp_path / "text.txt").write_text("Q: Start at 7 + 3.")
    output, figure = tmp_path / "report.json", tmp_path / "insight.svg"
    words = ["inspect", "--prompt", PROMPT, "--file", tmp_path / "text.txt", "--file", "-", "--num-steps", 6]
    words += ["--max-new-tokens", 3, "--output", output, "--figure", figure, "--tokens", 4]
    result = CliRunner().invoke(app, list(map(str, words)), input="Q: Start at 1 + 1.")
    assert result.exit_code == 0, result.stderr
    assert "\033" not in result.stdout and "Tokens that need most" in result.stdout
    assert "positions of 3 texts" in result.stdout
    record = json.loads(output.read_text())
    assert [each["recurrences"] for each in record["by_depth"]] == list(range(1, 7))
    for sentence in record["findings"]:
        assert sentence in result.stdout
    assert record["settings"]["exit_criterion"] == "latent_difference (threshold 0.03)"
    assert figure.read_text().startswith("<?xml") and {path.name for path in tmp_path.iterdir()} == {
        "text.txt",
        "report.json",
        "insight.svg",
    }
    asked = ("--exit-criterion", "kl", "--exit-threshold", 0.01, "--num-steps", 2, "--prompt", PROMPT)
    printed = json.loads(run("inspect", *asked, "--json").stdout)
    assert printed["settings"] | {"texts": 1, "exit_criterion": "kl (threshold 0.01)"} == printed["settings"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "Prompt 1 of 1 is empty"),
        (["--num-steps", "0"], "num_steps=0 must be at least 1"),
        (["--prompt", "1 " * 3000], "has room for"),
        (["--exit-criterion", "kll"], "did you mean 'kl'"),
        (["--exit-criterion", "exit_gate", "--prompt", "1"], "needs a model with an exit gate"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
        (["--file", "-", "--file", "-"], "given twice"),
        (["--figure", "insight.bmp"], "use .png, .svg or .pdf"),
        (["--output", "nowhere/report.json"], "there is no folder"),
    ],
)
def test_inspect_says_what_is_wrong(arguments, message):
    result = run("inspect", *arguments)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert message in result.stderr


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

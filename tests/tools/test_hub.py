"""Exported folders: what they hold, how they decode, what they execute, and how they are pushed."""

import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    TextStreamer,
    dynamic_module_utils,
)

from hf_diffusion_forcing import AdaptiveConfig, bundled_checkpoint
from hf_diffusion_forcing.hub import export_checkpoint, files_to_push
from hf_diffusion_forcing.hub.source_card import MARKER
from hf_diffusion_forcing.hub.staging import staged
from hf_diffusion_forcing.settings.presets import PRESET_SAMPLERS, PRESETS
from support import HUGINN_MINI
from support.commands import run
from support.local_hub import TOKEN, LocalHub
from support.markdown import BLOCK
from support.matrix import cases

TEXT = "Q: Start at 3 + 2 * 4. Last digit?\nA:"
SHORT = {"num_steps": 8, "seed": 0, "max_new_tokens": 12}


@pytest.fixture(autouse=True)
def modules_cache(tmp_path_factory, monkeypatch):
    """Where transformers copies a folder's code before it runs it."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody answers when transformers asks whether to run it


@pytest.fixture(scope="module")
def exported(bundled, tmp_path_factory):
    """The bundled checkpoint, with the preset "fast"."""
    # Not the shared tokenizer: it may have been told to pad, which is saved too.
    tokenizer, out = (
        AutoTokenizer.from_pretrained(bundled_checkpoint()),
        tmp_path_factory.mktemp("export") / "arithmetic",
    )
    return export_checkpoint(bundled[0], tokenizer, out, "fast", source=bundled_checkpoint())


@pytest.fixture(scope="module")
def inputs(bundled):
    return bundled[1](TEXT, return_tensors="pt")


def decoded(model, inputs, **kwargs):
    return model.generate(**inputs, **SHORT | {"return_dict_in_generate": True} | kwargs)


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}


# --- what is in the folder ---


def test_files(exported):
    assert names(exported) >= {
        "README.md",
        "config.json",
        "configuration_recurrent_depth.py",
        "custom_generate/generate.py",
        "custom_generate/requirements.txt",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    assert {Path(name).suffix for name in names(exported)} <= {
        ".md",
        ".json",
        ".jinja",
        ".png",
        ".py",
        ".safetensors",
        ".txt",
    }
    for name in names(exported) - {"model.safetensors"}:
        content = (exported / name).read_bytes()
        assert str(Path(bundled_checkpoint()).parent).encode() not in content
        assert str(exported.parent).encode() not in content
    assert not {"is_local", "local_files_only"} & json.loads((exported / "tokenizer_config.json").read_text()).keys()


def test_the_preset_is_stored_by_name(exported, bundled, inputs):
    stored = json.loads((exported / "generation_config.json").read_text())
    assert (stored["sampler"], stored["sampler_preset"]) == ("diffusion_forcing", "fast")
    assert "sampler_config" not in stored
    model, tokenizer = AutoModelForCausalLM.from_pretrained(exported), AutoTokenizer.from_pretrained(exported)
    assert tokenizer(TEXT).input_ids == inputs.input_ids[0].tolist()
    output = decoded(model, inputs)
    expected = decoded(bundled[0], inputs, sampler="diffusion_forcing", sampler_preset="fast")
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert output.stats == expected.stats


@pytest.mark.parametrize("settings", [{"wavefront": 3, "exit_criterion": {"name": "cosine"}}, {}])
def test_settings_over_the_preset(bundled, tmp_path, inputs, settings):
    model = copy.deepcopy(bundled[0])
    model.generation_config.sampler = "adaptive"
    model.generation_config.sampler_config = {"exit_criterion": "kl"}
    export_checkpoint(model, bundled[1], tmp_path / "out", "quality", sampler_config=settings)
    assert model.generation_config.sampler == "adaptive"
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (stored.generation_config.sampler_config or {}) == settings
    expected = decoded(bundled[0], inputs, sampler="diffusion_forcing", sampler_preset="quality", **settings)
    assert decoded(stored, inputs).stats == expected.stats


def test_remote_code_the_checkpoint_came_with_is_left_behind(huginn_mini, bundled, tmp_path):
    model = copy.deepcopy(huginn_mini)
    model.config.auto_map = {"AutoConfig": "a.B", "AutoModelForCausalLM": "someone/else--a.C"}
    export_checkpoint(model, bundled[1], tmp_path / "out")
    auto_map = json.loads((tmp_path / "out/config.json").read_text())["auto_map"]
    assert auto_map == {"AutoConfig": "configuration_recurrent_depth.RecurrentDepthConfig"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"preset": "fastest"}, ValueError, "did you mean 'fast'"),
        ({"sampler_config": {"wave_front": 3}}, ValueError, "did you mean 'wavefront'"),
        ({"sampler_config": {"inner_recurrence": 999}}, ValueError, "inner_recurrence=999 is more than num_steps"),
        ({"sampler_config": AdaptiveConfig()}, ValueError, "sampler_config=AdaptiveConfig, which is for 'adaptive'"),
        ({"sampler_config": 3}, TypeError, "must be a SamplerConfig or a dict"),
        ({"repo_id": "no//name"}, ValueError, "no//name"),
        ({"source": "/no/such/folder"}, ValueError, "neither a folder nor"),
        ({"tokenizer": None}, TypeError, "tokenizer=None"),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "Linear is not a recurrent-depth model"),
    ],
)
def test_bad_arguments_write_nothing(bundled, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        export_checkpoint(**{"model": bundled[0], "tokenizer": bundled[1], "out": tmp_path / "out"} | changes)
    assert list(tmp_path.iterdir()) == []


# --- all or nothing ---


@pytest.fixture
def interrupted(bundled):
    """A tokenizer during whose saving the user presses Ctrl+C, after the weights are written."""
    tokenizer = copy.deepcopy(bundled[1])

    def save_pretrained(folder):
        assert (Path(folder) / "model.safetensors").exists()
        raise KeyboardInterrupt

    tokenizer.save_pretrained = save_pretrained
    return tokenizer


def test_an_interrupted_export_leaves_nothing(bundled, interrupted, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(bundled[0], interrupted, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_overwriting(bundled, interrupted, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export_checkpoint(*bundled, out)  # an empty folder is free
    (out / "notes.txt").write_text("mine")
    before = names(out)
    with pytest.raises(ValueError, match="not empty"):
        export_checkpoint(*bundled, out)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(bundled[0], interrupted, out, overwrite=True)
    assert names(out) == before
    export_checkpoint(*bundled, out, "fast", overwrite=True)
    assert names(out) == before - {"notes.txt"}
    assert json.loads((out / "generation_config.json").read_text())["sampler_preset"] == "fast"
    assert list(tmp_path.iterdir()) == [out]


def test_a_checkpoint_is_put_back_when_the_new_one_cannot_take_its_place(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.json").write_text("{}")
    with pytest.raises(FileNotFoundError), staged(tmp_path / "out", overwrite=True) as stage:
        stage.rmdir()
    assert list(tmp_path.rglob("*")) == [tmp_path / "out", tmp_path / "out/config.json"]


def test_the_current_folder_is_not_replaced(bundled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="contains the current folder"):
        export_checkpoint(*bundled, ".")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("kept", ["thesis.tex", "config.json/.git/HEAD"])
def test_only_checkpoints_are_overwritten(bundled, tmp_path, kept):
    for name in kept.split("/", 1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("years of work")
    with pytest.raises(ValueError, match="is not a checkpoint to overwrite"):
        export_checkpoint(*bundled, tmp_path, overwrite=True)
    assert names(tmp_path) == set(kept.split("/", 1))
    with pytest.raises(ValueError, match="is a file"):
        export_checkpoint(*bundled, tmp_path / kept.split("/")[0], overwrite=True)


# --- what is executed ---


def test_without_trust_nothing_of_the_folder_is_executed(exported, bundled, inputs, tmp_path):
    folder, trace = tmp_path / "copy", tmp_path / "executed"
    shutil.copytree(exported, folder)
    for path in folder.rglob("*.py"):
        path.write_text(f"open({str(trace)!r}, 'a').write(__name__)\n" + path.read_text())

    model = AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    assert decoded(model, inputs).stats.ticks > 0
    for trust in ({}, {"trust_remote_code": None}, {"trust_remote_code": False}):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            bundled[0].generate(**inputs, custom_generate=str(folder), **trust)
    assert not trace.exists()

    # The trace works, and the package's own code goes before the folder's.
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert "custom_generate" in trace.read_text() and "configuration" not in trace.read_text()


@pytest.fixture(params=["loaded with trust", "custom_generate="])
def door(request, exported, bundled):
    """Both ways to the folder's generate(), as a generate()."""
    if request.param == "loaded with trust":
        return AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).generate

    def generate(*args, **kwargs):
        return bundled[0].generate(
            *args, **{"sampler_preset": "fast"} | kwargs, custom_generate=str(exported), trust_remote_code=True
        )

    return generate


class Heard(TextStreamer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.text = ""

    def on_finalized_text(self, text, stream_end=False):
        self.text += text


def test_keywords_pass_through(door, bundled, inputs):
    model, tokenizer = bundled
    settings = {"sampler": "diffusion_forcing", "sampler_preset": "fast"}
    expected = decoded(model, inputs, **settings)
    output = door(**inputs, **SHORT, return_dict_in_generate=True)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert output.stats == expected.stats
    assert door(inputs.input_ids, **SHORT).tolist() == expected.sequences.tolist()
    assert door(inputs.input_ids, GenerationConfig(max_new_tokens=3), seed=0).shape[1] == inputs.input_ids.shape[1] + 3

    narrow = {"wavefront": 2, "inner_recurrence": 4}
    output = door(**inputs, **SHORT, **narrow, return_dict_in_generate=True)
    assert output.stats == decoded(model, inputs, **settings | narrow).stats != expected.stats

    def new_text(ids):
        return tokenizer.decode(ids[0, inputs.input_ids.shape[1] :])

    streamer, stop = Heard(tokenizer, skip_prompt=True), new_text(expected.sequences)[:2]
    stopped = door(**inputs, **SHORT, streamer=streamer, tokenizer=tokenizer, stop_strings=[stop])
    assert stopped.shape[1] < expected.sequences.shape[1]
    assert streamer.text == new_text(stopped) and stop in streamer.text

    with pytest.raises(ValueError, match="did you mean 'wavefront'"):
        door(**inputs, wave_front=3)


@pytest.mark.parametrize(
    ("named", "stats"),
    [
        ({"sampler": "autoregressive"}, False),
        ({"sampler_config": AdaptiveConfig(seed=0, num_steps=8)}, True),
        ({"generation_config": GenerationConfig(sampler="adaptive", max_new_tokens=5)}, True),
    ],
)
def test_a_sampler_the_call_names_decodes(door, bundled, inputs, named, stats):
    call = {**inputs, "max_new_tokens": 5, "sampler_preset": None, "return_dict_in_generate": True} | named
    output, expected = door(**call, seed=0), bundled[0].generate(**call, seed=0)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert hasattr(output, "stats") == stats
    if stats:  # one position at a time
        assert output.stats == expected.stats


def test_whose_stored_sampler_decodes(exported, bundled, inputs):
    """The method's, when it is asked for by name; the model's, when it was loaded with the method."""
    other = copy.deepcopy(bundled[0])
    other.generation_config.sampler = "autoregressive"
    assert hasattr(decoded(other, inputs, custom_generate=str(exported), trust_remote_code=True), "stats")
    loaded = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    loaded.generation_config.sampler, loaded.generation_config.sampler_preset = "autoregressive", None
    assert not hasattr(decoded(loaded, inputs), "stats")


def test_what_the_code_requires(exported, huginn_mini, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    requirements = folder / "custom_generate/requirements.txt"
    requirements.write_text(requirements.read_text().replace(">=", ">=99."))
    with pytest.raises(ImportError, match=r"hf-diffusion-forcing>=99\."):
        huginn_mini.generate(torch.tensor([[81]]), custom_generate=str(folder), trust_remote_code=True)


def test_a_model_of_another_kind(exported):
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(TypeError, match=r"GPT2LMHeadModel.*import hf_diffusion_forcing"):
        gpt2.generate(torch.tensor([[1]]), custom_generate=str(exported), trust_remote_code=True)


# --- without importing the package, as from the Hub ---

WITHOUT_IMPORT = """
import json
import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

name, text, settings, saved = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
output = model.generate(**tokenizer(text, return_tensors="pt"), **settings, return_dict_in_generate=True)
pipe = pipeline("text-generation", name, trust_remote_code=True)
said = pipe(text, return_full_text=False, **settings)[0]["generated_text"]
model.save_pretrained(saved)
print(json.dumps([output.sequences[0].tolist(), output.stats.to_dict(), said]))
"""


@pytest.fixture(scope="module")
def hub_cache(exported, tmp_path_factory):
    """The environment of a process that has the exported folder from the Hub, as me/arithmetic."""
    home = tmp_path_factory.mktemp("home")
    repository, commit = home / "hub/models--me--arithmetic", "a" * 40
    shutil.copytree(exported, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    return os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def python(*arguments, env) -> subprocess.CompletedProcess:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=env, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("place", cases(["folder", "Hub"], keep=["Hub"]))
def test_without_the_import(exported, bundled, inputs, hub_cache, tmp_path, place):
    name = exported if place == "folder" else "me/arithmetic"
    result = python("-c", WITHOUT_IMPORT, name, TEXT, json.dumps(SHORT), tmp_path, env=hub_cache)
    assert result.returncode == 0, result.stderr
    ids, stats, said = json.loads(result.stdout.splitlines()[-1])
    expected = decoded(bundled[0], inputs, sampler="diffusion_forcing", sampler_preset="fast")
    assert ids == expected.sequences[0].tolist()
    assert stats == expected.stats.to_dict()
    new = expected.sequences[0, inputs.input_ids.shape[1] :]
    assert said == bundled[1].decode(new, skip_special_tokens=True)
    assert names(tmp_path) == {
        "config.json",
        "decoding_heads.safetensors",
        "generation_config.json",
        "model.safetensors",
    }


def test_export_of_a_hub_id(exported, hub_cache, tmp_path):
    arguments = ["-m", "hf_diffusion_forcing", "export", "me/arithmetic", tmp_path / "out", "--repo-id", "me/quick"]
    result = python(*arguments, env=hub_cache)
    assert result.returncode == 0, result.stderr
    card = ModelCard.load(tmp_path / "out/README.md")
    assert card.data.base_model == "me/arithmetic"
    assert 'from_pretrained("me/quick")' in card.text and card.text.startswith("\n# quick\n")
    assert "](https://huggingface.co/me/arithmetic/resolve/main/convergence.png)" in card.text
    assert (tmp_path / "out/model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


# --- model cards ---


def figures(text: str) -> list[str]:
    return [line for line in text.splitlines() if re.match(r"\|.*\d", line)]


def test_the_card_keeps_what_was_measured(exported):
    card, own = ModelCard.load(exported / "README.md"), ModelCard.load(Path(bundled_checkpoint()) / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    assert {"custom_generate", "recurrent-depth", "diffusion-forcing"} <= set(card.data.tags)
    assert card.data.license == own.data.license
    assert figures(card.text.partition(MARKER)[2]) == figures(own.text)
    assert "checkpoint's own card, with its measurements, follows" in card.text
    for image in re.findall(r"!\[.*\]\((.*)\)", own.text):
        assert (exported / image).read_bytes() == (Path(bundled_checkpoint()) / image).read_bytes()
    assert len(re.findall(r"^# ", re.sub(BLOCK, "", card.text), re.MULTILINE)) == 1


def test_a_card_without_a_source_invents_nothing(huginn_mini, bundled, tmp_path):
    out = export_checkpoint(huginn_mini, bundled[1], tmp_path / "mine", sampler_config={"wavefront": 7})
    text = (out / "README.md").read_text()
    assert "Neither was measured" in text and "`balanced` and `wavefront=7`" in text
    rows = {row[0]: row[1:] for row in (re.findall(r"[^ |`]+", line) for line in figures(text))}
    presets = PRESETS["huginn_raven"]
    with_figures = {name: values for name, values in presets.items() if values}
    assert {name: [PRESET_SAMPLERS[name], *map(str, values.values())] for name, values in with_figures.items()} == rows
    assert set(presets) - set(with_figures) == {"lossless"} and "`lossless` | `speculative_wavefront`" in text


def test_the_code_in_the_card_runs(exported, monkeypatch, capsys):
    monkeypatch.chdir(exported.parent)
    namespace = {}
    code = [text for kind, text in BLOCK.findall((exported / "README.md").read_text()) if kind == "python"]
    assert len(code) >= 3
    for block in code:
        exec(block, namespace)


def test_exporting_again_does_not_nest_the_card(exported, bundled, tmp_path):
    again = export_checkpoint(*bundled, tmp_path / "arithmetic", "fast", source=exported)
    assert (again / "README.md").read_text() == (exported / "README.md").read_text()
    assert names(again) == names(exported)


def test_a_card_takes_no_files_from_outside(huginn_mini, bundled, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    outside = tmp_path / "outside.png"
    for path in (outside, source / "in.png", source / "notes.txt"):
        path.write_text("image")
    (source / "README.md").write_text(
        f"# A\n![a](in.png) ![b](../outside.png) ![c]({outside}) ![d](notes.txt) ![e](missing.png)\n```\n# code\n```\n"
    )
    out = export_checkpoint(huginn_mini, bundled[1], tmp_path / "x/out", source=source)
    assert {name for name in names(tmp_path / "x") if Path(name).suffix == ".png"} == {"out/in.png"}
    assert "notes.txt" not in names(out)
    body = (out / "README.md").read_text().partition(MARKER)[2]
    assert body.startswith("\n\n## A\n") and "```\n# code\n" in body


@pytest.mark.parametrize("metadata", ["[1, 2", "- a list"])
def test_a_card_that_cannot_be_read(huginn_mini, bundled, tmp_path, metadata):
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# A\n")
    with pytest.raises(ValueError, match=r"README.md of .* cannot be read"):
        export_checkpoint(huginn_mini, bundled[1], tmp_path / "out", source=tmp_path)
    assert names(tmp_path) == {"README.md"}


# --- the commands ---


def test_export_command(tmp_path, exported):
    out = tmp_path / "arithmetic"
    result = run("export", bundled_checkpoint(), out, "--preset", "fast")
    assert result.exit_code == 0, result.stderr
    assert {name: (out / name).read_bytes() for name in names(out)} == {
        name: (exported / name).read_bytes() for name in names(exported)
    }
    assert "model.safetensors" in result.stdout
    result = run("export", bundled_checkpoint(), out)
    assert result.exit_code == 2 and "--overwrite" in result.stderr
    assert run("export", bundled_checkpoint(), out, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([HUGINN_MINI, "out"], "could not be loaded"),  # it has no tokenizer
        (["nothing", "out"], "could not be loaded"),
        ([bundled_checkpoint(), "out", "--preset", "quick"], "sampler_preset='quick' is unknown"),
        ([bundled_checkpoint(), "out", "--repo-id", "a/b/c"], "a/b/c"),
    ],
)
def test_export_says_what_is_wrong(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run("export", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def hub(monkeypatch):
    """A Hub that this process's huggingface_hub talks to, with its token."""
    with LocalHub(public=("me/public",)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.mark.parametrize(("repo_id", "private"), [("me/new", True), ("new", False), ("me/public", False)])
def test_push(hub, exported, repo_id, private):
    result = run("push", repo_id, exported, *["--private"] * private)
    assert result.exit_code == 0, result.stderr
    full = repo_id if "/" in repo_id else f"me/{repo_id}"
    assert hub.files == {f"{full}/{name}": (exported / name).read_bytes() for name in names(exported)}
    assert hub.private[full] == private
    assert f"{hub.url}/{full}" in result.stdout


def test_a_dry_run_sends_nothing(hub, exported):
    result = run("push", "me/new", exported, "--private", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert hub.requests == []
    listed = {name: size for size, name in re.findall(r"^ *([\d,]+)  (\S+)$", result.stdout, re.MULTILINE)}
    assert listed == {name: f"{size:,}" for name, size in files_to_push(exported).items()}
    assert "me/new" in result.stdout and "private" in result.stdout


def test_private_means_private(hub, exported):
    result = run("push", "me/public", exported, "--private")
    assert result.exit_code == 2 and "me/public exists and is public" in result.stderr
    assert hub.files == {}


def test_push_needs_a_token(hub, exported, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    result = run("push", "me/new", exported)
    assert result.exit_code == 2 and "hf auth login" in result.stderr
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    result = run("push", "me/new", exported)
    assert result.exit_code == 2 and "me/new was not pushed" in result.stderr and "401" in result.stderr
    assert hub.files == {}


def test_push_without_a_network(hub, exported, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:1")
    result = run("push", "me/new", exported)
    assert result.exit_code == 2 and "me/new was not pushed" in result.stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = run("push", "me/new", exported)
    assert result.exit_code == 2 and "HF_HUB_OFFLINE" in result.stderr


@pytest.mark.parametrize("name", ["pytorch_model.bin", "runs/optimizer.PT", "scaler.pkl"])
def test_pickles_are_not_pushed(hub, exported, tmp_path, name):
    folder = shutil.copytree(exported, tmp_path / "copy")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04N.")
    for options in ([], ["--dry-run"]):
        result = run("push", "me/new", folder, *options)
        assert result.exit_code == 2 and name in result.stderr and "safetensors" in result.stderr
    assert hub.requests == []


def test_what_cannot_be_pushed(hub, exported, tmp_path):
    for repo_id, folder, message in (
        ("me/new", tmp_path, "no config.json"),
        ("me/new", tmp_path / "nothing", "no config.json"),
        ("not/a/name", exported, "not/a/name"),
    ):
        result = run("push", repo_id, folder)
        assert result.exit_code == 2 and message in result.stderr
    assert hub.requests == []

"""The file of decoding heads: saved and loaded with a model, checked, widened and exported."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from hf_diffusion_forcing import bundled_checkpoint
from hf_diffusion_forcing.evaluation.widening import widen
from hf_diffusion_forcing.hub import export_checkpoint
from hf_diffusion_forcing.models.heads_file import HEADS_NAME, save_heads
from support import FAMILIES, HUGINN_MINI
from support.commands import run
from support.heads import random_heads

IDS = torch.tensor([[81, 58, 32, 83, 116, 97]])


@pytest.fixture
def headed(huginn_mini):
    model = copy.copy(huginn_mini)
    model.decoding_heads = random_heads(model)
    return model


@pytest.fixture
def folder(headed, tmp_path):
    headed.save_pretrained(tmp_path)
    return tmp_path


def stored(folder) -> dict:
    with open(folder / HEADS_NAME, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(json.loads(file.read(length))["__metadata__"]["decoding_heads"])


def test_they_are_saved_beside_the_weights_and_loaded(headed, folder):
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    heads, saved = loaded.decoding_heads, headed.decoding_heads
    assert (heads.fitted, heads.extra_tokens, heads.risk) == (saved.fitted, saved.extra_tokens, saved.risk)
    assert heads.tensors.keys() == saved.tensors.keys() and heads.readout_depths == [1, 2]
    for name, tensor in heads.tensors.items():
        torch.testing.assert_close(tensor, saved.tensors[name], rtol=1e-3, atol=1e-4)
    assert not any("readout" in name for name in load_file(folder / "model.safetensors"))
    assert not any("heads" in name for name, _ in loaded.named_parameters())
    again = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)[0]
    assert again.decoding_heads is not None
    assert AutoModelForCausalLM.from_pretrained(folder, decoding_heads=False).decoding_heads is None
    assert AutoModelForCausalLM.from_pretrained(HUGINN_MINI).decoding_heads is None
    AutoModel.from_pretrained(folder)  # the model without a head has no use for them
    twin = copy.deepcopy(loaded)
    assert twin.decoding_heads.tensors["extra.up"] is not heads.tensors["extra.up"]


def test_the_file_can_be_read_by_other_tools(folder):
    assert load_file(folder / HEADS_NAME)["extra.scale"].dtype == torch.float16
    facts = stored(folder)
    assert facts["version"] == 1 and facts["depth"] == 32 and facts["model_type"] == "huginn_raven"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 7}, r"fitted to another model: depth=7 \(the model has 32\)"),
        ({"vocabulary": 60}, "vocabulary=60"),
        ({"hidden_size": 32}, "hidden_size=32"),
        ({"model_type": "ouro"}, "model_type='ouro'"),
        ({"version": 9}, "has version 9 of decoding heads; this package reads 1"),
        ({"extra_tokens": "x"}, "cannot be read"),
        ({"risk": {"threshold": 1}}, "cannot be read"),
        (None, "cannot be read as decoding heads"),
    ],
)
def test_heads_of_another_model_are_refused(folder, change, message):
    tensors, facts = load_file(folder / HEADS_NAME), stored(folder)
    metadata = None if change is None else {"decoding_heads": json.dumps(facts | change)}
    save_file(tensors, folder / HEADS_NAME, metadata)
    with pytest.raises(ValueError, match=message) as caught:
        AutoModelForCausalLM.from_pretrained(folder)
    assert HEADS_NAME in str(caught.value) and "remove the file" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["extra.up", "readout.1.down", "probe.out", "extra.down", "start.up", "start.mean", "surplus"]
)
def test_misshapen_tensors_are_refused(folder, name):
    tensors, facts = load_file(folder / HEADS_NAME), stored(folder)
    tensors[name] = torch.zeros(7, 9)
    save_file(tensors, folder / HEADS_NAME, {"decoding_heads": json.dumps(facts)})
    with pytest.raises(ValueError, match="missing, unknown or misshapen"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_damaged_file_is_refused(folder):
    (folder / HEADS_NAME).write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="cannot be read as decoding heads"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("factor", [2, 3])
def test_a_widened_models_heads_say_the_same(headed, factor):
    wide = widen(headed, factor)
    generator = torch.Generator().manual_seed(0)
    states, before = torch.randn(2, 1, 5, headed.config.n_embd, generator=generator)
    tokens = torch.randint(0, 128, (1, 5), generator=generator)
    narrow, other = headed.decoding_heads, wide.decoding_heads
    repeated, earlier = (x.repeat(1, 1, factor) for x in (states, before))
    close = {"atol": 1e-3, "rtol": 1e-3}
    torch.testing.assert_close(other.corrected(repeated, 1), narrow.corrected(states, 1).repeat(1, 1, factor), **close)
    torch.testing.assert_close(other.exit_chance(repeated, earlier), narrow.exit_chance(states, before), **close)
    starts = [each.start(*inputs) for each, inputs in ((other, (repeated, earlier)), (narrow, (states, before)))]
    torch.testing.assert_close(starts[0], starts[1].repeat(1, 1, factor), **close)
    greedy = lambda logits, _: logits.argmax(-1)  # noqa: E731
    with torch.no_grad():
        guesses = [m.decoding_heads.ahead(m, s, tokens, 3, greedy) for m, s in ((headed, states), (wide, repeated))]
    assert torch.stack(guesses[0]).tolist() == torch.stack(guesses[1]).tolist()
    settings = {"sampler": "speculative_wavefront", "seed": 0, "max_new_tokens": 16, "draft_tokens": 4}
    stats = [m.generate(IDS, **settings, return_dict_in_generate=True).stats for m in (headed, wide)]
    assert stats[0].proposals == stats[1].proposals and stats[0].guesses == stats[1].guesses


def test_an_exported_checkpoint_has_them_and_its_card_says_so(bundled, tmp_path):
    model, tokenizer = bundled
    out = export_checkpoint(model, tokenizer, tmp_path / "out", "lossless")
    loaded = AutoModelForCausalLM.from_pretrained(out).decoding_heads
    assert loaded.readout_depths == [1, 2]
    card = " ".join((out / "README.md").read_text().split())
    assert "drafts after 1 and 2 recurrences" in card and f"{loaded.extra_tokens} tokens behind a draft" in card
    assert loaded.has_start and "predicts initial states (`learned_start=True`)" in card
    assert f"at most {loaded.risk.epsilon:.1%} of tokens differ from 32 recurrences" in card
    without = copy.copy(model)
    without.decoding_heads = None
    plain = export_checkpoint(without, tokenizer, tmp_path / "plain", "lossless")
    assert not (plain / HEADS_NAME).exists() and "Decoding heads" not in (plain / "README.md").read_text()


def test_the_bundled_heads_are_small_and_lossless(bundled):
    from pathlib import Path

    model, tokenizer = bundled
    assert (Path(bundled_checkpoint()) / HEADS_NAME).stat().st_size < 1e6
    inputs = tokenizer(
        "Q: Ada has 7 coins. Ada finds 8 more at school. How many coins does Ada have?\nA:", return_tensors="pt"
    )
    common = {"seed": 0, "max_new_tokens": 40}
    expected = model.generate(**inputs, sampler="autoregressive", **common).tolist()
    settings = {"sampler": "speculative_wavefront", "draft_depth": 1, "draft_tokens": 8, "draft_source": None}
    passes = []
    for heads in (model.decoding_heads, None):
        twin = copy.copy(model)
        twin.decoding_heads = heads
        output = twin.generate(**inputs, **settings, **common, return_dict_in_generate=True)
        assert output.sequences.tolist() == expected
        passes.append(output.stats.core_passes)
    assert passes[0] < 0.9 * passes[1]


def test_the_learned_criterion_needs_a_probe(huginn_mini, headed):
    settings = {"sampler": "adaptive", "exit_criterion": "learned", "max_new_tokens": 4}
    with pytest.raises(ValueError, match=r"exit_criterion='learned' needs an exit probe.*hf-diffusion-forcing fit"):
        huginn_mini.generate(IDS, **settings)
    heads = headed.decoding_heads
    headed.decoding_heads = heads.changed(heads.tensors, risk=None)
    with pytest.raises(ValueError, match="needs a threshold"):
        headed.generate(IDS, **settings)
    assert headed.generate(IDS, **settings, exit_threshold=0.5).shape[1] > IDS.shape[1]
    with pytest.raises(ValueError, match="threshold=-1"):
        headed.generate(IDS, **settings, exit_threshold=-1)


@pytest.mark.parametrize("sampler", ["adaptive", "diffusion_forcing"])
def test_a_learned_start_needs_a_start_head(huginn_mini, headed, sampler):
    """Heads that were fitted without one still load, and decode without it."""
    settings = {"sampler": sampler, "learned_start": True, "max_new_tokens": 4, "seed": 0}
    with pytest.raises(
        ValueError, match=r"needs a start head, and this model has none: run `hf-diffusion-forcing fit`"
    ):
        huginn_mini.generate(IDS, **settings)
    headed.decoding_heads = headed.decoding_heads.only("readout", "extra", "probe")
    with pytest.raises(ValueError, match="needs a start head"):
        headed.generate(IDS, **settings)
    with pytest.raises(TypeError, match="learned_start='yes' must be True or False"):
        headed.generate(IDS, **settings | {"learned_start": "yes"})
    assert headed.generate(IDS, **settings | {"learned_start": False}).shape[1] > IDS.shape[1]


def test_a_core_without_injected_embedding_has_no_learned_start():
    model = AutoModelForCausalLM.from_pretrained(FAMILIES["ouro"])
    with pytest.raises(ValueError, match="its core reads no injected embedding"):
        model.generate(IDS, sampler="adaptive", learned_start=True)


def test_two_starts_are_refused(headed):
    with pytest.raises(ValueError, match="continuous_compute=True and learned_start=True"):
        headed.generate(IDS, sampler="diffusion_forcing", learned_start=True, continuous_compute=True)


def test_a_copy_of_a_checkpoint_is_converted_with_its_heads(tmp_path):
    shutil.copytree(bundled_checkpoint(), tmp_path / "own")
    result = run("convert", tmp_path / "own", tmp_path / "new", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "new" / HEADS_NAME).is_file()


def test_heads_are_written_as_a_whole(headed, tmp_path, monkeypatch):
    path = tmp_path / HEADS_NAME
    save_heads(headed.decoding_heads, path)
    written = path.read_bytes()
    monkeypatch.setattr(
        "hf_diffusion_forcing.models.heads_file.save_file", lambda *_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        save_heads(headed.decoding_heads, path)
    assert path.read_bytes() == written

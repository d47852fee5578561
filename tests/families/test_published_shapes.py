"""Configs with the published sizes: exact parameter counts on the meta device, limits, positions, special tokens."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_diffusion_forcing import RavenConfig
from support import FIXTURES, HUGINN_MINI

PUBLISHED = FIXTURES / "published"
LAYOUTS = {
    "huginn-0125": "huginn",
    "recurrent-llama-3.2": "llama",
    "recurrent-tinyllama-3t": "llama",
    "recurrent-olmo-2-0425": "olmo",
}
"""Of those whose configs do not all name it: the tensors do."""
PARAMETERS = {
    "huginn-0125": 3_564_976_800,
    "recurrent-llama-3.2": 1_385_228_288,
    "recurrent-tinyllama-3t": 844_171_264,
    "recurrent-olmo-2-0425": 1_359_071_232,
    "ouro-1.4b": 1_434_652_673,
    "ouro-2.6b": 2_667_974_657,
    "nanbeige4.2-3b": 4_169_800_704,
    "nanbeige4.2-3b-base": 4_169_800_704,
    "parcae-140m": 144_323_136,
    "parcae-370m": 388_003_328,
    "parcae-770m": 776_655_680,
    "parcae-1.3b": 1_338_591_744,
}


def published(name):
    """The config as a checkpoint gives it, and its file."""
    more = {"layout": LAYOUTS[name]} if name in LAYOUTS else {}
    return AutoConfig.from_pretrained(PUBLISHED / name, **more), json.loads(
        (PUBLISHED / name / "config.json").read_text()
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_shapes(name):
    config, stored = published(name)
    stored |= stored.get("rope_settings", {})
    assert config.rope_parameters["rope_theta"] == stored.get("rope_theta", stored.get("rope_base"))
    loops = [stored[each] for each in ("mean_recurrence", "total_ut_steps", "num_loops") if each in stored]
    assert [config.mean_recurrence] == loops
    assert config.max_position_embeddings == stored.get("max_position_embeddings", stored.get("block_size"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert len(model.base_model.inverse_frequencies) == config.head_dim // 2


def test_a_published_parcae_has_117_tensors():
    """Among them a copy of the tied head, and a table of rotations, which is no tensor here."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(published("parcae-370m")[0])
    assert len(model.state_dict()) + len(["freqs_cis"]) == 117


def test_every_published_config_is_counted():
    """(HRM-Text's, which transformers has a class for, in `test_hrm_text.py`.)"""
    assert {path.name for path in PUBLISHED.iterdir()} == {*PARAMETERS, "hrm-text-1b"}


@pytest.mark.parametrize("name", ["recurrent-llama-3.2", "huginn-0125"])
def test_published_configs_that_tell_their_layout(name):
    assert AutoConfig.from_pretrained(PUBLISHED / name).layout == LAYOUTS[name]


@pytest.mark.parametrize("name", ["recurrent-llama-3.2", "recurrent-tinyllama-3t", "recurrent-olmo-2-0425"])
def test_retrofitted_models_are_not_tied(name):
    assert not published(name)[0].tie_word_embeddings


def test_the_training_length_is_not_the_limit(tmp_path):
    """Recurrent-Llama-3.2 has both; one is left in a saved config."""
    config, stored = published("recurrent-llama-3.2")
    assert (stored["block_size"], config.block_size, config.max_position_embeddings) == (1024, 131072, 131072)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["block_size"] == 131072 and "max_position_embeddings" not in saved
    assert AutoConfig.from_pretrained(tmp_path).max_position_embeddings == 131072
    with pytest.raises(ValueError, match="block_size=1024 and max_position_embeddings=512 are two names"):
        RavenConfig(**stored | {"max_position_embeddings": 512})


def test_huginns_shorter_config_is_the_same_model():
    """The one in its authors' repository has other names, and leaves out what follows from the rest."""
    config, stored = published("huginn-0125")
    shorter = {name: value for name, value in stored.items() if name not in ("n_layers", "head_dim", "init_values")}
    shorter["num_attention_heads"] = shorter.pop("n_heads")
    other = RavenConfig(**shorter)
    for name in ("n_heads", "n_layers", "head_dim", "layout", "rope_parameters", "tie_word_embeddings", "block_size"):
        assert getattr(other, name) == getattr(config, name), name
    for name in ("std", "embed_scale"):
        assert other.init_values[name] == pytest.approx(config.init_values[name])


def test_huginns_generation_config_is_read(tmp_path):
    """Its config.json names no special tokens; two of them end a text."""
    shutil.copytree(HUGINN_MINI, tmp_path, dirs_exist_ok=True)
    shutil.copy(PUBLISHED / "huginn-0125" / "generation_config.json", tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).generation_config
    assert loaded.eos_token_id == [65505, 65508] and (loaded.bos_token_id, loaded.pad_token_id) == (65504, 65509)

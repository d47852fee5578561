"""Nanbeige: golden outputs of the published code, settings it refuses, and what depends on the number of loops."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from hf_diffusion_forcing import NanbeigeConfig, NanbeigeForCausalLM
from support import FAMILIES, new_tokens

PATH = FAMILIES["nanbeige"]
CLOSE = {"atol": 1e-4, "rtol": 0}
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def model():
    model = AutoModelForCausalLM.from_pretrained(PATH).eval()
    model.generation_config.eos_token_id = None  # the golden texts do not obey it
    return model


@pytest.fixture(scope="module")
def golden():
    return load_file(PATH / "golden.safetensors")


# --- law 1: the published code ---


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("loops", [1, 2, 3])
@torch.no_grad()
def test_law_1_every_depth(model, golden, loops, use_cache):
    output = model(golden["input_ids"], num_steps=loops, use_cache=use_cache)
    torch.testing.assert_close(output.logits, golden[f"logits_L{loops}"], **CLOSE)
    torch.testing.assert_close(output.latents, golden[f"hidden_L{loops}"], **CLOSE)
    stored = AutoModelForCausalLM.from_pretrained(PATH, num_loops=loops).eval()
    torch.testing.assert_close(stored(golden["input_ids"]).logits, golden[f"logits_L{loops}"], **CLOSE)


@torch.no_grad()
def test_law_1_token_by_token(model, golden):
    cache, logits = model.new_cache(2, "none"), []
    for ids in golden["input_ids"].split([12] + [1] * 12, dim=1):
        logits.append(model(ids, cache=cache).logits)
    torch.testing.assert_close(torch.cat(logits, dim=1), golden["cached_logits_L2"], **CLOSE)


@torch.no_grad()
def test_law_1_the_norm_comes_once(golden):
    """And the head reads a normed state, whichever recurrence it comes from."""
    model = AutoModelForCausalLM.from_pretrained(PATH, skip_loop_final_norm=True).eval()
    output = model(golden["input_ids"], output_hidden_states=True)
    torch.testing.assert_close(output.logits, golden["logits_skip_norm_L2"], **CLOSE)
    torch.testing.assert_close(model(golden["input_ids"], num_steps=1).logits, golden["logits_L1"], **CLOSE)
    torch.testing.assert_close(model.lm_head(output.hidden_states[-1]), output.logits)
    base = AutoModel.from_pretrained(PATH, skip_loop_final_norm=True).eval()
    torch.testing.assert_close(base(golden["input_ids"]).last_hidden_state, output.hidden_states[-1])


@pytest.mark.parametrize("sampler", [None, "autoregressive", "speculative_wavefront"])
def test_law_1_greedy_tokens(model, golden, sampler):
    ids = model.generate(golden["input_ids"][:1, :12], max_new_tokens=24, sampler=sampler)
    assert ids.tolist() == golden["greedy_L2"].tolist()


@pytest.mark.parametrize("sampler", [None, "autoregressive", "speculative_wavefront"])
def test_law_1_a_padded_batch(model, golden, sampler):
    inputs = {"input_ids": golden["padded_input_ids"], "attention_mask": golden["padded_attention_mask"]}
    ids = model.generate(**inputs, max_new_tokens=24, sampler=sampler)
    assert new_tokens(ids, 12) == new_tokens(golden["greedy_padded"], 12)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("loops", [2, 3, 4])
def test_law_5_at_every_number_of_loops(golden, loops, skip):
    model = AutoModelForCausalLM.from_pretrained(PATH, num_loops=loops, skip_loop_final_norm=skip, eos_token_id=None)
    inputs = {"input_ids": golden["padded_input_ids"], "attention_mask": golden["padded_attention_mask"]}
    for do_sample in (False, True):
        common = {"max_new_tokens": 12, "seed": 1, "do_sample": do_sample}
        expected = model.eval().generate(**inputs, sampler="autoregressive", **common).tolist()
        for depth in (1, loops - 1):
            if loops % depth == 0:
                lossless = {"sampler": "speculative_wavefront", "draft_depth": depth}
                assert model.generate(**inputs, **lossless, **common).tolist() == expected


def test_the_wavefront_of_two_loops_gains_at_most_two(model):
    """A token needs two ticks, and two tokens are in flight at most: the bound, whatever the weights."""
    ids = torch.tensor([[55, 2, 103, 95, 53]])
    common = {"max_new_tokens": 24, "return_dict_in_generate": True}
    stats = model.generate(ids, sampler="speculative_wavefront", **common).stats
    assert 23 <= stats.core_passes <= 2 * 23


# --- the config ---


def test_published_names_and_a_round_trip(model, tmp_path):
    config = model.config
    assert (config.head_dim, config.kv_channels, config.mean_recurrence, config.padded_vocab_size) == (16, 16, 2, 128)
    assert config.rope_parameters["rope_theta"] == 70000000
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert again.to_dict() | {"_name_or_path": None} == config.to_dict() | {"_name_or_path": None}
    AutoConfig.from_pretrained(PATH, skip_loop_final_norm=True, num_loops=3).save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert (again.skip_loop_final_norm, again.num_loops) == (True, 3)


@pytest.mark.parametrize(
    ("settings", "head_dim"),
    [({"head_dim": 8, "kv_channels": 16}, 8), ({"head_dim": None, "kv_channels": 16}, 16), ({"head_dim": 6}, 6)],
)
def test_head_dim_is_what_is_read(settings, head_dim):
    config = NanbeigeConfig(**SMALL | settings)
    assert config.head_dim == config.kv_channels == head_dim
    attention = NanbeigeForCausalLM(config).model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (4 * head_dim, 32) and attention.k_proj.weight.shape == (2 * head_dim, 32)


def test_loop_loss_weights_say_the_number_of_loops(warnings):
    assert NanbeigeConfig(**SMALL).num_loops == 2
    assert NanbeigeConfig(**SMALL, loop_loss_weights=[0.2, 0.3]).num_loops == 3
    assert NanbeigeConfig(**SMALL, loop_loss_weights=[0.2, 0.3], num_loops=3).num_loops == 3
    assert NanbeigeConfig(**SMALL, num_loops=5, loop_loss_weights=[]).num_loops == 5
    assert warnings.records == []
    assert NanbeigeConfig(**SMALL, num_loops=2, loop_loss_weights=[0.2, 0.3]).num_loops == 3
    assert "num_loops=2 does not fit loop_loss_weights" in warnings.text and "using num_loops=3" in warnings.text


OFF = {"enable_mhc": False, "emb_neighbor_num": 0, "loop_middle_layers": [], "ngram_vocab_size_ratio": None}
ON = {
    "enable_double_loop_split": True,
    "loop_middle_layers": [1, 2],
    "loop_share_kv": True,
    "enable_hyper_connection": True,
    "enable_mhc": True,
    "enable_depth_attention": True,
    "emb_neighbor_num": 2,
    "emb_split_num": 4,
    "ngram_vocab_size_ratio": 0.5,
    "qk_layernorm": True,
    "attention_bias": True,
}


@pytest.mark.parametrize(("name", "value"), ON.items())
def test_settings_that_released_files_do_not_set_are_refused(name, value, tmp_path):
    """In a file, in a call, and on a config that was made before: by name, before a model is made."""
    NanbeigeConfig(**SMALL, **OFF)
    with pytest.raises(ValueError, match=rf"{name}=.*is not supported for nanbeige.*remove it from config.json"):
        NanbeigeConfig(**SMALL, **OFF | {name: value})
    stored = json.loads((PATH / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stored | {name: value}))
    for auto in (AutoConfig, AutoModelForCausalLM):  # there are no weights in the folder
        with pytest.raises(ValueError, match=rf"{name}={value!r}".replace("[", r"\[")):
            auto.from_pretrained(tmp_path)
    config = NanbeigeConfig(**SMALL)
    setattr(config, name, value)
    with pytest.raises(ValueError, match=f"{name}="):
        NanbeigeForCausalLM(config)


def test_all_of_them_are_named_at_once():
    with pytest.raises(ValueError, match="enable_hyper_connection=True, enable_mhc=True is not supported"):
        NanbeigeConfig(**SMALL, enable_mhc=True, enable_hyper_connection=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_loops": 0}, "num_loops=0 must be at least 1"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=4"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"mean_backprop_depth": 0}, "mean_backprop_depth=0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        NanbeigeConfig(**SMALL | settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, r"9 missing \(expected, not found\): model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, r"9 left over \(found, not expected\): model.layers.1.input_layernorm.weight"),
        ({"head_dim": 8}, r"of another shape: .*q_proj.weight \(found \[96, 64\], expected \[48, 64\]\)"),
    ],
)
def test_weights_of_other_layers_than_the_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(PATH, **changes)


# --- memory and training ---


def slots(model):
    cache = model.new_cache(model.config.mean_recurrence, "none")
    return cache.num_core_layers * cache.num_steps


def test_a_slot_for_every_loop_and_layer():
    """176 KiB a token in bfloat16 for the published shape."""
    with torch.device("meta"):
        model = NanbeigeForCausalLM(NanbeigeConfig(vocab_size=64))
    assert slots(model) == 44
    assert slots(model) * 2 * model.config.num_key_value_heads * model.config.head_dim * 2 == 176 * 1024


def test_all_recurrences_carry_gradients_by_default():
    """At any depth: what is truncated would leave the embedding without any."""
    model = NanbeigeForCausalLM(NanbeigeConfig(**SMALL)).train()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    model(ids, labels=ids, num_steps=5).loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.config.mean_backprop_depth = 2
    model.zero_grad()
    model(ids, labels=ids, num_steps=5).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["model.embed_tokens.weight"]

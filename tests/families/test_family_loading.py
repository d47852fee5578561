"""Loading checkpoints of every family as Hub users do: layouts, special tokens, published shapes, damaged ones."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline

from hf_diffusion_forcing import OuroConfig, RavenConfig, RavenForCausalLM, RavenModel, bundled_checkpoint
from hf_diffusion_forcing.models.huginn_raven.configuration_huginn_raven import layout_of
from support import CLASSES, FAMILIES, NATIVE

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
AUTO_MAP = {"AutoConfig": "configuration_other.OtherConfig", "AutoModelForCausalLM": "modeling_other.OtherModel"}
"""For a published config that names no code."""
SMALL = {"vocab_size": 61, "n_embd": 32, "n_heads": 4, "intermediate_size": 48}


@pytest.fixture(params=NATIVE)
def folder(request, tmp_path):
    """A copy of each family's checkpoint, to damage."""
    return copied(request.param, tmp_path)


def copied(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(FAMILIES[name] / file, folder)
    return folder


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- classes and code ---


@pytest.mark.parametrize("name", NATIVE)
def test_native_classes_load_without_a_warning(name, warnings):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name])
    assert type(model) is CLASSES[name].causal
    assert warnings.records == []


@pytest.mark.parametrize(("auto", "kind"), [(AutoModelForCausalLM, "causal"), (AutoModel, "base")])
@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_auto_map_never_runs_code_from_the_folder(folder, tmp_path, trust_remote_code, auto, kind):
    proof = tmp_path / "executed"
    stored = json.loads((folder / "config.json").read_text()).get("auto_map", AUTO_MAP)
    change_config(folder, auto_map=stored | {auto.__name__: stored["AutoModelForCausalLM"]})
    for module in {reference.split(".")[0] for reference in stored.values()}:
        (folder / f"{module}.py").write_text(f"open({str(proof)!r}, 'w').write('executed')\n")
    model = auto.from_pretrained(folder, trust_remote_code=trust_remote_code)
    assert type(model) is getattr(CLASSES[folder.name], kind)
    assert not proof.exists()


# --- base models ---

IDS = torch.tensor([[0, 0, 55, 2, 103, 95, 53], [61, 88, 37, 19, 7, 120, 69]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_automodel_gives_what_the_head_reads(name, warnings):
    whole, base = CLASSES[name].causal.from_pretrained(FAMILIES[name]), AutoModel.from_pretrained(FAMILIES[name])
    assert type(base) is CLASSES[name].base and not base.can_generate() and warnings.records == []
    for key, tensor in whole.base_model.state_dict().items():
        assert torch.equal(base.state_dict()[key], tensor), key
    common = {"attention_mask": MASK, "num_steps": 3, "seeds": torch.tensor([1, 2])}
    expected, output = whole(IDS, **common), base(IDS, **common)
    torch.testing.assert_close(whole.lm_head(output.last_hidden_state), expected.logits)
    torch.testing.assert_close(output.latents, expected.latents)
    assert torch.equal(base(IDS, **common, return_dict=False)[0], output.last_hidden_state)
    # The same in two calls over a cache, and without one.
    first = base(IDS[:, :4], **common | {"attention_mask": MASK[:, :4]})
    rest = base(IDS[:, 4:], **common, cache=first.cache)
    for tensor in (rest.last_hidden_state, base(IDS, **common, use_cache=False).last_hidden_state[:, 4:]):
        torch.testing.assert_close(tensor, output.last_hidden_state[:, 4:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NATIVE)
@torch.no_grad()
def test_a_saved_base_model_loads_again(name, tmp_path):
    base = AutoModel.from_pretrained(FAMILIES[name])
    base.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    common = {"num_steps": 3, "seeds": torch.tensor([1, 2])}
    assert torch.equal(again(IDS, **common).last_hidden_state, base(IDS, **common).last_hidden_state)
    if base.config.tie_word_embeddings:
        whole = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(whole.lm_head.weight, base.get_input_embeddings().weight)
    else:
        with pytest.raises(ValueError, match=r"1 missing \(expected, not found\): lm_head.weight"):
            AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", NATIVE)
def test_base_models_train(name):
    """Gradients reach every part but the exit gate, through the last `mean_backprop_depth` recurrences."""
    base = AutoModel.from_pretrained(FAMILIES[name]).train()
    base(IDS, attention_mask=MASK, num_steps=3).last_hidden_state.square().sum().backward()
    unused = {key for key, p in base.named_parameters() if p.grad is None}
    assert all("early_exit_gate" in key for key in unused)


@torch.no_grad()
def test_the_feature_extraction_pipeline():
    extract = pipeline("feature-extraction", model=bundled_checkpoint())
    assert type(extract.model) is RavenModel
    torch.manual_seed(0)
    features = torch.tensor(extract("12 + 34 ="))
    ids = extract.tokenizer("12 + 34 =", return_tensors="pt").input_ids
    torch.manual_seed(0)
    torch.testing.assert_close(features, extract.model(ids).last_hidden_state)


def test_base_models_refuse_what_they_do_not_take():
    base = AutoModel.from_pretrained(FAMILIES["llama"])
    with pytest.raises(ValueError, match="does not take labels"):
        base(IDS, labels=IDS)


# --- devices ---


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_on_a_disk_decode_the_same(name, tmp_path):
    """`device_map="auto"` with room for a part of the layers."""
    common = {"max_new_tokens": 4, "num_steps": 2, "seed": 0, "sampler": "speculative_wavefront"}
    whole = AutoModelForCausalLM.from_pretrained(FAMILIES[name])
    size = sum(p.numel() for p in whole.parameters()) * 4
    split = AutoModelForCausalLM.from_pretrained(
        FAMILIES[name], device_map="auto", max_memory={"cpu": int(0.7 * size)}, offload_folder=tmp_path
    )
    assert "disk" in split.hf_device_map.values()
    assert split.generate(IDS[1:], **common).tolist() == whole.generate(IDS[1:], **common).tolist()


# --- layouts ---


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        ({}, "huginn"),
        ({"qk_bias": True}, "huginn"),
        ({"qk_bias": False, "rope_scaling": dict(LLAMA3), "rope_theta": 5e5}, "llama"),
        ({"qk_bias": False, "rope_parameters": {"rope_theta": 5e5, **LLAMA3}}, "llama"),
        ({"qk_bias": False, "rope_theta": 1e4}, None),
        ({"layout": "olmo"}, "olmo"),
        ({"layout": "llama", "num_key_value_heads": 2}, "llama"),
    ],
)
def test_what_the_config_alone_says_of_the_layout(settings, layout):
    config = RavenConfig(**SMALL, **settings)
    assert config.layout == layout
    assert config.qk_bias == (layout == "huginn")


@pytest.mark.parametrize("name", ["huginn", "llama", "olmo"])
def test_the_tensors_tell_the_layout_and_the_saved_config_says_it(name, tmp_path):
    assert "layout" not in json.loads((FAMILIES[name] / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name])
    assert model.config.layout == name
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["layout"] == name
    assert AutoConfig.from_pretrained(tmp_path).layout == name
    # Without weights at hand, the config is enough.
    assert type(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))) is RavenForCausalLM


@pytest.mark.parametrize("name", ["llama", "olmo"])
def test_the_class_itself_and_state_dicts_find_the_layout(name):
    assert RavenForCausalLM.from_pretrained(FAMILIES[name]).config.layout == name
    config = RavenConfig.from_pretrained(FAMILIES[name])
    tensors = load_file(FAMILIES[name] / "model.safetensors")
    model = RavenForCausalLM.from_pretrained(None, config=config, state_dict=tensors)
    assert model.config.layout == name
    assert config.layout == ("llama" if name == "llama" else None)  # the caller's is left alone


def test_a_config_that_does_not_tell_needs_a_layout():
    with pytest.raises(ValueError, match="Set layout='llama' or layout='olmo'"):
        RavenForCausalLM(RavenConfig(**SMALL, qk_bias=False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layout": "lama"}, "did you mean 'llama'"),
        ({"layout": "llama", "qk_bias": True}, "does not fit qk_bias=True"),
        ({"layout": "huginn", "qk_bias": False}, "does not fit qk_bias=False"),
        ({"layout": "llama", "num_key_value_heads": 3}, "num_key_value_heads=3 must divide n_heads=4"),
        ({"layout": "llama", "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
    ],
)
def test_impossible_raven_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RavenConfig(**SMALL, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_ut_steps": 0}, "total_ut_steps=0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide num_attention_heads=16"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"layer_types": ["sliding_attention"] * 24}, "'sliding_attention'"),
        ({"layer_types": ["full_attention"] * 3}, "3 entries"),
        ({"early_exit_threshold": 1.5}, "early_exit_threshold=1.5"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    ],
)
def test_impossible_ouro_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        OuroConfig(**settings)


def test_llama3_scaling_turns_slow_channels_slower():
    plain, scaled = (
        RavenModel(RavenConfig(**SMALL, layout="llama", rope_theta=5e5, **more)).inverse_frequencies
        for more in ({}, {"rope_scaling": dict(LLAMA3)})
    )
    assert scaled[0] == plain[0] == 1.0
    assert scaled[-1] == pytest.approx(plain[-1] / 32)


# --- damaged checkpoints ---


def test_missing_tensors_are_listed(folder):
    ends = ("layers.1.mlp.up_proj.weight", "core_block.1.mlp.fc.weight")
    gone = next(name for name in load_file(folder / "model.safetensors") if name.endswith(ends))
    change_tensors(folder, lambda tensors: tensors.pop(gone))
    with pytest.raises(ValueError, match=rf"1 missing \(expected, not found\): {gone}"):
        AutoModelForCausalLM.from_pretrained(folder)
    # transformers' own way to look at it.
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {gone}


def test_left_over_tensors_are_listed(folder):
    change_tensors(folder, lambda tensors: tensors.update({"transformer.value_head.weight": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"1 left over \(found, not expected\): transformer.value_head.weight"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_other_shapes_are_listed(folder):
    name = next(n for n in load_file(folder / "model.safetensors") if n.endswith(("ln_f.weight", "model.norm.weight")))
    change_tensors(folder, lambda tensors: tensors.update({name: torch.ones(7)}))
    with pytest.raises(ValueError, match=rf"1 of another shape: {name} \(found \[7\], expected \[\d+\]\)"):
        AutoModelForCausalLM.from_pretrained(folder)
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert [(key, list(found)) for key, found, _ in info["mismatched_keys"]] == [(name, [7])]
    assert AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True).config.vocab_size == 128


@pytest.mark.parametrize("name", ["huginn", "llama", "olmo"])
def test_a_layout_that_matches_none(name, tmp_path):
    folder = copied(name, tmp_path)

    def rename(tensors):
        for key in [key for key in tensors if ".norm_2." in key]:
            tensors[key.replace("norm_2", "norm_9")] = tensors.pop(key)

    change_tensors(folder, rename)
    with pytest.raises(ValueError, match=r"match no layout.*Found in its blocks:.*norm_9.*Expected: huginn: .*olmo: "):
        AutoModelForCausalLM.from_pretrained(folder)
    for load in (AutoModelForCausalLM.from_pretrained, RavenForCausalLM.from_pretrained):
        model, info = load(folder, output_loading_info=True)
        assert model.config.layout == name
        assert all(".norm_2." in key for key in info["missing_keys"]) and info["missing_keys"]
        assert all(".norm_9." in key for key in info["unexpected_keys"]) and info["unexpected_keys"]


def test_tensors_of_another_model_are_listed(folder):
    """All are left over, and all of the model's are missing."""
    change_tensors(folder, lambda tensors: (tensors.clear(), tensors.update({"h.0.attn.weight": torch.ones(3)})))
    with pytest.raises(ValueError, match=r"match no layout|1 left over \(found, not expected\): h.0.attn.weight"):
        AutoModelForCausalLM.from_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"h.0.attn.weight"}
    assert set(info["missing_keys"]) == set(model.state_dict())


def test_a_layout_that_contradicts_the_config(tmp_path):
    folder = copied("olmo", tmp_path)
    change_config(folder, qk_bias=True)
    with pytest.raises(ValueError, match=r"num_key_value_heads == n_heads|does not fit qk_bias=True"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_sharded_checkpoints_tell_their_layout_by_their_index(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES["olmo"])
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    change_config(tmp_path, layout=None)
    assert not (tmp_path / "model.safetensors").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.layout == "olmo"
    layout = layout_of(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"])
    assert layout == "olmo"


# --- special tokens ---


def save_tokenizer(folder, **special):
    words = {f"w{i}": i for i in range(120)} | {"<s>": 120, "</s>": 121, "<|im_end|>": 122, "<pad>": 123}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("name", ["llama", "olmo"])
def test_stale_special_token_ids_are_corrected_from_the_tokenizer(name, tmp_path, warnings):
    folder = copied(name, tmp_path)
    change_config(folder, bos_token_id=4, eos_token_id=5, pad_token_id=6)
    save_tokenizer(folder, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for holder in (model.config, model.generation_config):
        assert (holder.bos_token_id, holder.eos_token_id, holder.pad_token_id) == (120, 121, 123)
    said = [record.getMessage() for record in warnings.records]
    assert len(said) == 3 and any("eos_token_id=5" in text and "using eos_token_id=121" in text for text in said)
    # Once saved they are right, and what is set on purpose stays.
    warnings.clear()
    model.generation_config.eos_token_id = 7
    model.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert (again.config.eos_token_id, again.generation_config.eos_token_id) == (121, 7)
    assert warnings.records == []


def test_an_id_the_tokenizer_has_among_several_is_not_stale(tmp_path, warnings):
    folder = copied("olmo", tmp_path)
    change_config(folder, bos_token_id=120, eos_token_id=[121, 122])
    save_tokenizer(folder, bos_token="<s>", eos_token="</s>")
    assert AutoModelForCausalLM.from_pretrained(folder).config.eos_token_id == [121, 122]
    assert warnings.records == []


def test_huginns_own_ids_are_not_touched(tmp_path, warnings):
    folder = copied("huginn", tmp_path)
    change_config(folder, eos_token_id=5)
    save_tokenizer(folder, eos_token="</s>")
    assert AutoModelForCausalLM.from_pretrained(folder).config.eos_token_id == 5
    assert warnings.records == []


def test_ouro_stops_at_the_end_of_a_turn(tmp_path, warnings):
    """Its config.json, as published, names another id alone."""
    folder = copied("ouro", tmp_path)
    save_tokenizer(folder, eos_token="</s>")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == [121, 122]
    assert "using eos_token_id=[121, 122]" in warnings.text
    for end in (121, 122):
        always = {"sequence_bias": {(end,): 1e3}, "sampler": "speculative_wavefront"}
        biased = model.generate(torch.tensor([[55, 2, 103]]), max_new_tokens=12, **always)
        assert biased[0, 3:].tolist() == [end]
    warnings.clear()
    model.generation_config.eos_token_id = 7
    model.save_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == 7
    assert warnings.records == []

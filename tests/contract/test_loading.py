"""Loading as Hub users do, law 7, and checkpoints that are damaged."""

import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from hf_diffusion_forcing import RavenConfig, RavenForCausalLM
from support import HUGINN_MINI, tiny_config

PROMPT = torch.tensor([[81, 58, 32, 68, 97, 110]])


@pytest.fixture
def copy(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(HUGINN_MINI, folder)
    return folder


def test_the_auto_classes_load_native_code(huginn_mini):
    assert type(huginn_mini) is RavenForCausalLM
    assert type(AutoConfig.from_pretrained(HUGINN_MINI)) is RavenConfig


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_auto_map_never_runs_code_from_the_folder(copy, tmp_path, trust_remote_code):
    """config.json's auto_map points to remote code; native code is used whatever the user trusts."""
    proof = tmp_path / "executed"
    for module in ("raven_config_minimal", "raven_modeling_minimal"):
        (copy / f"{module}.py").write_text(f"open({str(proof)!r}, 'w').write('executed')\n")
    model = AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=trust_remote_code)
    assert type(model) is RavenForCausalLM
    assert not proof.exists()


def test_a_hub_checkpoint_loads_without_a_warning(warnings):
    """Huginn's files hold freqs_cis and a copy of the tied head."""
    tensors = load_file(HUGINN_MINI / "model.safetensors")
    assert "freqs_cis" in tensors and "lm_head.weight" in tensors
    model, info = RavenForCausalLM.from_pretrained(HUGINN_MINI, output_loading_info=True)
    assert warnings.records == []
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert model.lm_head.weight is model.transformer.wte.weight


def test_law_7_save_load_generate(huginn_mini, tmp_path):
    """A checkpoint saved with its sampler decodes that way with no flag, to the same text."""
    settings = {"wavefront": 9, "exit_threshold": 0.05, "inner_recurrence": 2, "num_steps": 8, "seed": 3}
    flagged = huginn_mini.generate(PROMPT, sampler="diffusion_forcing", max_new_tokens=24, **settings)
    config = huginn_mini.generation_config
    try:
        config.sampler, config.sampler_config = "diffusion_forcing", settings
        huginn_mini.save_pretrained(tmp_path)
    finally:
        del config.sampler, config.sampler_config
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert stored["sampler"] == "diffusion_forcing" and stored["sampler_config"] == settings
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    output = loaded.generate(PROMPT, max_new_tokens=24, return_dict_in_generate=True)
    assert output.sequences.tolist() == flagged.tolist()
    assert output.stats.ticks > 0
    # What the call passes wins over what is stored: a generation config with a sampler of its own, or keywords.
    passed = GenerationConfig(sampler="autoregressive", sampler_config={"num_steps": 8}, max_new_tokens=24)
    assert not hasattr(loaded.generate(PROMPT, generation_config=passed, return_dict_in_generate=True), "stats")
    keyword = loaded.generate(PROMPT, max_new_tokens=24, sampler="autoregressive", num_steps=8, seed=3)
    plain = huginn_mini.generate(PROMPT, max_new_tokens=24, sampler="autoregressive", num_steps=8, seed=3)
    assert keyword.tolist() == plain.tolist()
    with pytest.raises(ValueError, match="wavefront was set on the generation config itself"):
        loaded.generate(PROMPT, generation_config=GenerationConfig(sampler="diffusion_forcing", wavefront=8))


@torch.no_grad()
def test_save_and_load_round_trip(huginn_mini, tmp_path):
    huginn_mini.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert "freqs_cis" not in saved
    assert ("lm_head.weight" in saved) != ("transformer.wte.weight" in saved)  # tied: stored once
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    seeds = torch.tensor([1])
    before = huginn_mini(PROMPT, num_steps=3, seeds=seeds).logits
    assert torch.equal(loaded(PROMPT, num_steps=3, seeds=seeds).logits, before)


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_device_map(huginn_mini, device_map):
    model = AutoModelForCausalLM.from_pretrained(HUGINN_MINI, device_map=device_map)
    common = {"sampler": "diffusion_forcing", "num_steps": 8, "seed": 0, "max_new_tokens": 12}
    assert model.generate(PROMPT, **common).tolist() == huginn_mini.generate(PROMPT, **common).tolist()


def test_half_of_the_weights_on_disk(huginn_mini, tmp_path):
    """accelerate's hooks move each block's weights in; positions, masks and cache follow."""
    device_map = {"transformer.wte": "cpu", "lm_head": "cpu", "transformer.adapter": "cpu", "transformer.ln_f": "cpu"}
    device_map |= {"transformer.prelude": "cpu", "transformer.coda": "cpu", "transformer.core_block": "disk"}
    model = AutoModelForCausalLM.from_pretrained(HUGINN_MINI, device_map=device_map, offload_folder=tmp_path)
    common = {"sampler": "diffusion_forcing", "num_steps": 8, "seed": 0, "max_new_tokens": 6}
    assert model.generate(PROMPT, **common).tolist() == huginn_mini.generate(PROMPT, **common).tolist()


def test_bfloat16(huginn_mini):
    model = AutoModelForCausalLM.from_pretrained(HUGINN_MINI, dtype=torch.bfloat16)
    ids = model.generate(PROMPT, sampler="diffusion_forcing", num_steps=8, seed=0, max_new_tokens=12)
    assert model.dtype == torch.bfloat16 and ids.shape[1] == PROMPT.shape[1] + 12


def test_the_published_size():
    """Huginn-0125 on the meta device: 3.5B parameters with the head tied."""
    with torch.device("meta"):
        model = RavenForCausalLM(RavenConfig())
    model.tie_weights()
    config = model.config
    block = 4 * config.n_embd**2 + 3 * config.n_embd * config.intermediate_size + 6 * config.n_embd
    total = 8 * block + 2 * config.n_embd**2 + config.n_embd + 65536 * config.n_embd
    assert sum(p.numel() for p in model.parameters()) == total
    assert 3.4e9 < total < 4.0e9


def test_tensor_parallel_plan_names_modules(tiny):
    names = {name for name, _ in tiny.transformer.named_modules()}
    for pattern in tiny.config.base_model_tp_plan:
        assert pattern.replace("*", "0") in names


@pytest.mark.parametrize("damage", ["truncated", "garbage", "missing"])
def test_damaged_weights(copy, damage):
    weights = copy / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[: 2**20])
    elif damage == "garbage":
        weights.write_bytes(b"\x00" * 512)
    else:
        weights.unlink()
    with pytest.raises((OSError, SafetensorError), match=r"model\.safetensors|[Hh]eader|incomplete"):
        AutoModelForCausalLM.from_pretrained(copy)


def test_missing_tensors_are_reported(copy, caplog):
    tensors = load_file(copy / "model.safetensors")
    del tensors["transformer.adapter.weight"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    _, info = RavenForCausalLM.from_pretrained(copy, output_loading_info=True)
    assert "transformer.adapter.weight" in info["missing_keys"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embd": 0}, "n_embd=0"),
        ({"n_layers_in_recurrent_block": 0}, "n_layers_in_recurrent_block=0"),
        ({"n_layers_in_prelude": -1}, "n_layers_in_prelude=-1"),
        ({"head_dim": 7}, "head_dim=7"),
        ({"n_heads": 4, "num_key_value_heads": 2, "head_dim": 8}, "num_key_value_heads"),
        ({"padded_vocab_size": 8}, "padded_vocab_size=8"),
        ({"norm_eps": 0.0}, "norm_eps"),
        ({"rope_base": -1}, "rope_base"),
        ({"init_values": {"std": float("nan"), "embed_scale": 1.0}}, "std"),
        ({"mean_recurrence": 0}, "mean_recurrence=0"),
    ],
)
def test_impossible_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_a_resized_vocabulary(tiny, tmp_path):
    tiny.resize_token_embeddings(70)
    assert tiny(torch.tensor([[69, 3]]), labels=torch.tensor([[69, 3]]), use_cache=False).loss.isfinite()
    tiny.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    common = {"sampler": "diffusion_forcing", "seed": 0, "max_new_tokens": 8}
    ids = torch.tensor([[69, 3]])
    assert loaded.generate(ids, **common).tolist() == tiny.generate(ids, **common).tolist()


def test_token_ids_of_a_generation_config_that_came_from_a_model_config(copy):
    """transformers 4 wrote such files; the ids in them count, its defaults (max_length 20) do not."""
    old = {"_from_model_config": True, "eos_token_id": 0, "pad_token_id": 1, "max_length": 20}
    (copy / "generation_config.json").write_text(json.dumps(old))
    config = AutoModelForCausalLM.from_pretrained(copy).generation_config
    assert (config.eos_token_id, config.pad_token_id, config.max_length) == (0, 1, None)

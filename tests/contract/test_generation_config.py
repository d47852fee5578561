"""A model's generation config is one with a sampler, wherever it comes from."""

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from hf_diffusion_forcing import AdaptiveConfig, DiffusionForcingConfig, ExitCriterion, RecurrentDepthGenerationConfig

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


def test_it_is_ours_wherever_it_comes_from(tiny, tmp_path):
    assert type(tiny.generation_config) is RecurrentDepthGenerationConfig
    assert tiny.generation_config.max_length is None and not tiny.generation_config.names_sampler
    tiny.generation_config = GenerationConfig(sampler="adaptive", max_new_tokens=3)
    assert type(tiny.generation_config) is type(copy.deepcopy(tiny).generation_config) is RecurrentDepthGenerationConfig
    tiny.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded.generation_config) is RecurrentDepthGenerationConfig
    assert (loaded.generation_config.sampler, loaded.generation_config.max_new_tokens) == ("adaptive", 3)
    (tmp_path / "generation_config.json").unlink()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (
        type(loaded.generation_config) is RecurrentDepthGenerationConfig and not loaded.generation_config.names_sampler
    )
    passed = AutoModelForCausalLM.from_pretrained(tmp_path, generation_config=GenerationConfig(sampler="adaptive"))
    assert passed.generation_config.sampler == "adaptive"
    assert type(passed.decoding_config(GenerationConfig(max_new_tokens=2)).sampler_config) is AdaptiveConfig


def test_settings_are_a_dataclass_or_a_dict(tiny, tmp_path):
    config = tiny.generation_config
    config.sampler_config = DiffusionForcingConfig(wavefront=4, seed=3, exit_criterion={"name": "kl", "threshold": 0.1})
    ids = tiny.generate(PROMPT, max_new_tokens=8)
    tiny.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert stored["sampler"] == "diffusion_forcing" and "sampler_preset" not in stored
    assert DiffusionForcingConfig.from_dict(stored["sampler_config"]) == config.sampler_config
    assert GenerationConfig.from_pretrained(tmp_path).sampler_config == stored["sampler_config"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.generate(PROMPT, max_new_tokens=8).tolist() == ids.tolist()
    config.sampler = "adaptive"
    with pytest.raises(ValueError, match="sampler='adaptive' does not fit sampler_config=DiffusionForcingConfig"):
        tiny.generate(PROMPT, max_new_tokens=8)
    del config.sampler, config.sampler_config
    assert not config.names_sampler


def test_hooks_without_a_name_decode_and_are_not_saved(tiny, tmp_path):
    class Eager(ExitCriterion):
        def __call__(self, refinement):
            return torch.ones_like(refinement.positions, dtype=torch.bool)

    tiny.generation_config.sampler_config = DiffusionForcingConfig(exit_criterion=Eager(), inner_recurrence=1)
    output = tiny.generate(PROMPT, max_new_tokens=4, return_dict_in_generate=True)
    assert output.stats.ticks == 3
    with pytest.raises(TypeError, match="register_exit_criterion"):
        tiny.save_pretrained(tmp_path)


def test_a_call_changes_nothing_that_is_stored(tiny):
    tiny.generation_config = RecurrentDepthGenerationConfig(sampler_preset="fast", sampler_config={"wavefront": 4})
    before = tiny.generation_config.to_dict()
    tiny.generate(PROMPT, max_new_tokens=2, sampler="adaptive", num_steps=3)
    assert tiny.generation_config.to_dict() == before

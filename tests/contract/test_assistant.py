"""A recurrent-depth model drafts for another model: assisted generation."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support import SAMPLERS

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=61, max_position_embeddings=128, **sizes)).eval()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_text_is_the_main_models_own(llama, tiny, sampler, monkeypatch):
    """The assistant drafts with the sampler stored in its generation config."""
    settings = dict(SAMPLERS[sampler])
    tiny.generation_config.sampler = settings.pop("sampler", None)
    tiny.generation_config.sampler_config = settings
    drafted = []
    generate = type(tiny).generate
    monkeypatch.setattr(
        type(tiny), "generate", lambda self, *args, **kwargs: drafted.append(1) or generate(self, *args, **kwargs)
    )
    expected = llama.generate(PROMPT, max_new_tokens=20)
    assert llama.generate(PROMPT, max_new_tokens=20, assistant_model=tiny).tolist() == expected.tolist()
    assert len(drafted) > 3

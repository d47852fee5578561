"""Every family split over two processes by its tensor-parallel plan: the logits and texts of the whole model."""

import pytest

from hf_diffusion_forcing import OuroConfig, OuroForCausalLM
from support import FAMILIES
from support.processes import run_in_two

SMALL = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
SCRIPT = """
import json, sys, torch
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
import hf_diffusion_forcing

ids = torch.tensor([[5, 6, 7, 8, 9], [3, 1, 4, 1, 5]])
depth, seeds = 3, torch.tensor([1, 2])
found = {}
for name, path in json.loads(sys.argv[1]).items():
    try:
        split = AutoModelForCausalLM.from_pretrained(path, distributed_config=DistributedConfig(tp_plan="auto")).eval()
    except ValueError as error:
        found[name] = {"error": str(error)}
        continue
    whole = AutoModelForCausalLM.from_pretrained(path).eval()
    with torch.no_grad():
        logits, expected = (model(ids, num_steps=depth, seeds=seeds).logits for model in (split, whole))
    settings = {"sampler": "speculative_wavefront", "num_steps": depth, "seed": 1, "max_new_tokens": 5}
    texts = [model.generate(ids, **settings).tolist() for model in (split, whole)]
    # Weights by what this process holds of them.
    shares = {
        key: parameter.to_local().numel() / parameter.numel()
        for key, parameter in split.named_parameters() if hasattr(parameter, "to_local")
    }
    found[name] = {"off": (logits - expected).abs().max().item(), "same": texts[0] == texts[1], "shares": shares}
sys.stdout.write(json.dumps(found) + "\\n")
sys.stdout.flush()
"""


@pytest.mark.full
def test_logits_and_texts_are_those_of_one_process(tmp_path):
    """With the head tied (huginn, tied) and not (llama, ouro, nanbeige), an odd vocabulary, and grouped heads."""
    paths = {name: str(FAMILIES[name]) for name in ("huginn", "llama", "ouro", "nanbeige")}
    made = {"tied": {"num_key_value_heads": 2, "tie_word_embeddings": True}, "one": {"num_key_value_heads": 1}}
    for name, more in made.items():
        paths[name] = str(tmp_path / name)
        OuroForCausalLM(OuroConfig(**SMALL, **more)).save_pretrained(paths[name])
    results = run_in_two(SCRIPT, tmp_path, paths)
    assert len(results) == 2
    for found in results:
        error = found.pop("one")["error"]
        assert "2 processes would split a head: num_key_value_heads=1" in error
        for name, each in found.items():
            assert each["off"] < 1e-4 and each["same"], name
            split = {key.split(".")[-2] for key, share in each["shares"].items() if share < 0.6}
            embedding = "embed_tokens" if name in ("ouro", "nanbeige", "tied") else "wte"
            inside = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
            assert split >= {embedding} | (inside if embedding == "embed_tokens" else {"fc", "proj"})
            # A tied head is listed as the embedding alone.
            assert ("lm_head" in split) == (name in ("llama", "ouro", "nanbeige"))

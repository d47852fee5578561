"""Modules that look at rows see the whole batch in its order; a failed call leaves the model as it was."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from support import FAMILIES, INJECTED, SAMPLERS, left_pad
from support.matrix import cases

PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
SHORT = {"num_steps": 4, "seed": 0, "max_new_tokens": 8, "pad_token_id": 0}
WAVES = {name: SAMPLERS[name] for name in ("adaptive", "diffusion_forcing", "speculative_wavefront")}


@pytest.fixture
def tiny_family(request):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[request.param]).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


def supported(pairs):
    """No diffusion forcing without an injected embedding."""
    return [pair for pair in pairs if pair[0] in INJECTED or pair[1] != "diffusion_forcing"]


EVERY = pytest.mark.parametrize(
    ("tiny_family", "sampler"),
    cases(
        supported([(family, sampler) for family in FAMILIES for sampler in WAVES]),
        [("llama", "diffusion_forcing"), ("llama", "speculative_wavefront"), ("ouro", "adaptive")],
    ),
    indirect=["tiny_family"],
)


def in_a_batch(model, sampler, **changes):
    """The new ids of each row of a ragged batch."""
    batch = left_pad(PROMPTS)
    ids = model.generate(**batch, **WAVES[sampler] | SHORT | changes)
    return ids[:, batch["input_ids"].shape[1] :].tolist()


def together_and_alone(model, sampler, wrap, **changes):
    """The new ids of each row, in a ragged batch and alone; `wrap` gives the arguments of rows."""
    together, alone = in_a_batch(model, sampler, **wrap(range(3)), **changes), []
    for row, ids in enumerate(PROMPTS):
        settings = WAVES[sampler] | SHORT | changes | {"seed": row}
        text = model.generate(input_ids=torch.tensor([ids]), **settings, **wrap([row]))[0, len(ids) :].tolist()
        alone.append(text + [0] * (len(together[row]) - len(text)))
    return together, alone


@EVERY
def test_an_adapter_per_row(tiny_family, sampler):
    """PEFT's `adapter_names`, in rows that end at different lengths."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_family, config, adapter_name="one").eval()
    model.add_adapter("two", config)
    names = ["one", "__base__", "two"]
    plain = in_a_batch(model, sampler)
    ends = {"eos_token_id": [plain[0][4], plain[2][7]]}
    together, alone = together_and_alone(
        model, sampler, lambda rows: {"adapter_names": [names[row] for row in rows]}, **ends
    )
    assert together == alone != plain
    with model.disable_adapter():
        base = in_a_batch(model, sampler, **ends)
    assert together[1][: len(base[1])] == base[1][: len(together[1])] and together[0] != base[0]


@EVERY
def test_a_hook_that_adds_a_tensor_per_row(tiny_family, sampler):
    model = tiny_family
    plain = in_a_batch(model, sampler)
    layers = next(module for name, module in model.named_modules() if name.endswith(("core_block", "layers")))
    added = torch.randn(3, 1, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    chosen = list(range(3))
    handle = layers[-1].register_forward_hook(lambda module, args, output: output + added[chosen])

    def choose(rows):
        chosen[:] = rows
        return {}

    together, alone = together_and_alone(model, sampler, choose, eos_token_id=[plain[0][4], plain[2][7]])
    assert together == alone != plain
    handle.remove()
    assert in_a_batch(model, sampler) == plain


@pytest.mark.parametrize("settings", [{"adaptive_prefill": True}, {"wavefront": "auto"}, {"prefill_chunk_size": 2}])
def test_a_hook_sees_the_whole_batch_in_every_pass(tiny, settings):
    """An adaptive prompt and one read in chunks, too. (A measured wave may have any width.)"""
    settings = {"sampler": "diffusion_forcing", "seed": 0, "max_new_tokens": 8, "inner_recurrence": 2} | settings
    if settings.get("wavefront") == "auto":
        settings["exit_threshold"] = 0.0
    plain = tiny.generate(**left_pad(PROMPTS), **settings).tolist()
    seen = []
    handle = tiny.transformer.core_block[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    assert tiny.generate(**left_pad(PROMPTS), **settings).tolist() == plain
    assert {shape[0] for shape in seen} == {3}
    handle.remove()


class Failing:
    """A forward hook that fails after some calls."""

    def __init__(self, after):
        self.left = after

    def __call__(self, module, args, output):
        self.left -= 1
        if not self.left:
            raise RuntimeError("a hook failed")


def state_of(model):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    return hooks, copy.deepcopy(model.generation_config.to_dict()), copy.deepcopy(model.config.to_dict())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("after", [2, 20])
def test_a_failed_call_leaves_model_and_cache_as_they_were(tiny, sampler, after):
    """The cache holds columns that are complete, or none: the same call on it succeeds."""
    settings = SAMPLERS[sampler] | {"max_new_tokens": 12, "seed": 0}
    batch = left_pad(PROMPTS)
    expected = tiny.generate(**batch, **settings).tolist()
    default = "none" if sampler in ("plain", "autoregressive", "speculative_wavefront") else "last"
    before, cache = state_of(tiny), tiny.new_cache(6, default)
    handle = tiny.transformer.core_block[0].register_forward_hook(Failing(after))
    with pytest.raises(RuntimeError, match="a hook failed"):
        tiny.generate(**batch, **settings, cache=cache)
    handle.remove()
    assert state_of(tiny) == before
    held = cache.get_seq_length()
    assert (held == 0) if after == 2 else (held >= batch["input_ids"].shape[1])
    cache.crop(4 - held)
    assert tiny.generate(**batch, **settings, cache=cache).tolist() == expected

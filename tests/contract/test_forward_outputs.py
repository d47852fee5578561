"""What forward() and generate() return on request, and the kernel that computes attention."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM

from hf_diffusion_forcing.models.base_model import RecurrentDepthModel
from support import FAMILIES, INJECTED, SAMPLERS, left_pad
from support.matrix import cases

IDS = torch.tensor([[5, 6, 7, 8], [9, 3, 2, 1]])
ROWS = [[3, 1, 4, 1, 5], [9, 2]]
FIXED = {"seeds": torch.tensor([1, 2]), "num_steps": 3}


every_family = cases(FAMILIES, keep=["huginn", "ouro"])
on_every_family = pytest.mark.parametrize("eager", every_family, indirect=True)


@pytest.fixture(scope="module")
def eager(request):
    """A model with attn_implementation="eager", and the same with "sdpa"."""
    path = FAMILIES[request.param]
    models = [AutoModelForCausalLM.from_pretrained(path, attn_implementation=name).eval() for name in ("eager", "sdpa")]
    for model in models:
        model.generation_config.eos_token_id = model.config.eos_token_id = None
    return models


def core_layers(model) -> tuple[int, int]:
    """Attention layers outside the core, and in it."""
    cache = model.new_cache(1)
    return cache.num_prelude_layers + cache.num_coda_layers, cache.num_core_layers


@torch.no_grad()
def test_hidden_states_are_the_embedding_the_states_and_what_the_head_reads(family):
    states = []
    output = family(IDS, output_hidden_states=True, on_recurrence=lambda s, before: states.append(s), **FIXED)
    assert len(output.hidden_states) == 3 + 2
    at = family.new_cache(3, "none").place(torch.arange(4).expand(2, 4), start=0)
    torch.testing.assert_close(output.hidden_states[0], family.embed(IDS, at))
    for kept, state in zip(output.hidden_states[1:-1], states, strict=True):
        assert torch.equal(kept, state)
    torch.testing.assert_close(family.get_output_embeddings()(output.hidden_states[-1]), output.logits)
    if isinstance(family.base_model, RecurrentDepthModel):
        base = family.base_model(IDS, output_hidden_states=True, **FIXED)
        assert torch.equal(base.hidden_states[-1], base.last_hidden_state)
    last = family(IDS, output_hidden_states=True, logits_to_keep=1, **FIXED)
    assert last.hidden_states[-1].shape[1] == 4
    torch.testing.assert_close(last.logits, output.logits[:, -1:])


@torch.no_grad()
def test_the_config_asks_for_hidden_states_too(tiny):
    assert tiny(IDS).hidden_states is None
    tiny.config.output_hidden_states = True
    assert len(tiny(IDS).hidden_states) == 6 + 2
    assert tiny(IDS, output_hidden_states=False).hidden_states is None
    assert len(tiny(IDS, return_dict=False)) == len(tiny(IDS, output_hidden_states=False, return_dict=False)) + 1


def test_gradients_flow_through_hidden_states(tiny):
    tiny(IDS, output_hidden_states=True).hidden_states[-2].sum().backward()
    assert tiny.transformer.core_block[0].attn.Wqkv.weight.grad is not None


@torch.no_grad()
@pytest.mark.parametrize(
    ("eager", "sampler"),
    [
        pytest.param(name, sampler, marks=() if name in ("huginn", "ouro") else pytest.mark.full)
        for name in FAMILIES
        for sampler in SAMPLERS
        if sampler != "diffusion_forcing" or name in INJECTED
    ],
    indirect=["eager"],
)
def test_generate_has_the_fields(eager, sampler):
    model, _ = eager
    output = model.generate(
        **left_pad(ROWS),
        **SAMPLERS[sampler],
        seed=1,
        num_steps=4,
        max_new_tokens=3,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    if sampler not in ("plain", "autoregressive"):
        # Documented: a wave has no single pass per token.
        assert output.hidden_states is None and output.attentions is None
        return
    outside, inside = core_layers(model)
    assert [len(token) for token in output.hidden_states] == [4 + 2] * 3
    assert [token[0].shape[1] for token in output.hidden_states] == [5, 1, 1]
    assert [len(token) for token in output.attentions] == [outside + 4 * inside] * 3
    for column, token in enumerate(output.attentions, start=5):
        for probabilities in token:
            assert probabilities.shape[-1] == column
            # The shorter row has three columns of padding.
            assert not probabilities[1, ..., :3].any()
            torch.testing.assert_close(probabilities[..., -1, :].sum(-1), torch.ones(probabilities.shape[:2]))


@torch.no_grad()
@on_every_family
def test_attentions_are_what_values_are_read_with(eager):
    model, _ = eager
    seen = []

    class Listener:
        """Attention again from the probabilities returned later."""

        def __init__(self, attend):
            self.attend = attend

        def __call__(self, layer, query, key, value, at, slot=0):
            y = self.attend(layer, query, key, value, at, slot)
            seen.append((value, y))
            return y

    cache = model.new_cache(3, "none")
    cache.attend = Listener(cache.attend)
    output = model(IDS, cache=cache, output_attentions=True, **FIXED)
    outside, inside = core_layers(model)
    assert len(output.attentions) == len(seen) == outside + 3 * inside
    for probabilities, (value, y) in zip(output.attentions, seen, strict=True):
        assert not probabilities.triu(1).any()
        value = value.repeat_interleave(probabilities.shape[1] // value.shape[1], dim=1)
        torch.testing.assert_close(probabilities @ value, y, atol=1e-5, rtol=1e-4)
    without = model(IDS, use_cache=False, output_attentions=True, **FIXED)
    for ours, theirs in zip(without.attentions, output.attentions, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
@on_every_family
def test_eager_is_computed_and_equals_sdpa(eager, monkeypatch):
    by_hand, by_kernel = eager
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    for use_cache in (True, False):
        common = {"attention_mask": mask, "use_cache": use_cache, **FIXED}
        real = mask.bool()
        torch.testing.assert_close(
            by_hand(IDS, **common).logits[real], by_kernel(IDS, **common).logits[real], atol=1e-5, rtol=0
        )

    def refuse(*args, **kwargs):
        raise AssertionError("sdpa was called")

    expected = {}
    for name, settings in SAMPLERS.items():
        if by_hand.has_injected_embedding or name != "diffusion_forcing":
            for sharing in ("last", "none"):
                call = settings | {"kv_sharing": sharing, "seed": 1, "num_steps": 4, "max_new_tokens": 8}
                if name != "speculative_wavefront" or sharing == "none":
                    expected[name, sharing] = call, by_kernel.generate(**left_pad(ROWS), **call).tolist()
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", refuse)
    for call, text in expected.values():
        assert by_hand.generate(**left_pad(ROWS), **call).tolist() == text
    with pytest.raises(AssertionError, match="sdpa was called"):
        by_kernel(IDS, **FIXED)


@torch.no_grad()
def test_attention_is_set_on_a_model_in_memory(tiny):
    with pytest.raises(ValueError, match=r"attn_implementation='eager', but it is 'sdpa'.*set_attn_implementation"):
        tiny(IDS, output_attentions=True)
    with pytest.raises(ValueError, match=r"attn_implementation='eager', but it is 'sdpa'"):
        tiny.generate(IDS, sampler="diffusion_forcing", output_attentions=True, return_dict_in_generate=True)
    tiny.set_attn_implementation("eager")
    assert len(tiny(IDS, output_attentions=True).attentions) == 2 + 6 * 2
    tiny.config.output_attentions = True
    assert len(tiny(IDS).attentions) == 2 + 6 * 2
    base = tiny.base_model
    base.set_attn_implementation("sdpa")
    assert tiny.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention", "paged|eager", "sdqa"])
def test_other_kernels_are_refused_by_name(tiny, name):
    with pytest.raises(ValueError, match=rf"attn_implementation=\"{name}\".*use 'sdpa'".replace("|", r"\|")):
        tiny.set_attn_implementation(name)
    for auto in (AutoModelForCausalLM, AutoModel):
        with pytest.raises(ValueError, match=r"attn_implementation=.*use 'sdpa'"):
            auto.from_pretrained(FAMILIES["ouro"], attn_implementation=name)
    tiny.config._attn_implementation = name
    with pytest.raises(ValueError, match=r"attn_implementation=.*use 'sdpa'"):
        tiny(IDS)

"""Prompts given as embeddings, to forward() and generate(); soft prompts of PEFT."""

import copy

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoConfig

from hf_diffusion_forcing import RavenConfig, enable_recurrent_depth
from hf_diffusion_forcing.models.base_model import RecurrentDepthModel
from support import EMBEDDABLE, FAMILIES, SAMPLERS, left_pad, tiny_config
from support.looped_adapter import LoopedAdapter
from support.looped_model import LoopedConfig, LoopedLM
from support.matrix import cases

ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]
CALL = {"seed": 1, "num_steps": 4, "max_new_tokens": 5}
ALL = pytest.mark.parametrize("family", EMBEDDABLE, indirect=True)
TWO_FAMILIES = pytest.mark.parametrize("family", cases(EMBEDDABLE, keep=["llama", "ouro"]), indirect=True)
READS_IDS = pytest.mark.parametrize("family", [name for name in FAMILIES if name not in EMBEDDABLE], indirect=True)


def samplers_of(model):
    return {
        name: settings | CALL
        for name, settings in SAMPLERS.items()
        if model.has_injected_embedding or name != "diffusion_forcing"
    }


@ALL
@torch.no_grad()
def test_forward_reads_the_embeddings_of_ids_as_it_reads_ids(family):
    inputs, common = left_pad(ROWS), {"seeds": torch.tensor([1, 2, 3]), "num_steps": 3}
    embeds = family.get_input_embeddings()(inputs.pop("input_ids"))
    bases = [family.base_model] if isinstance(family.base_model, RecurrentDepthModel) else []
    for model in (family, *bases):
        expected = model(**left_pad(ROWS), **common)[0]
        assert torch.equal(model(inputs_embeds=embeds, **inputs, **common)[0], expected)


def test_gradients_reach_the_embeddings(tiny):
    embeds = torch.randn(1, 4, 32, requires_grad=True)
    tiny.train()(inputs_embeds=embeds, labels=torch.tensor([[1, 2, 3, 4]])).loss.backward()
    assert embeds.grad.abs().sum() > 0


@TWO_FAMILIES
@torch.no_grad()
def test_generate_reads_the_embeddings_of_ids_as_it_reads_ids(family):
    """Alone they give the new tokens, with ids both; sampled too, in the same noise; also by chunks."""
    inputs = left_pad(ROWS)
    mask = {"attention_mask": inputs["attention_mask"], "pad_token_id": 0}
    embeds = family.get_input_embeddings()(inputs["input_ids"])
    for name, call in samplers_of(family).items():
        for extra in ({}, {"do_sample": True, "temperature": 0.7, "repetition_penalty": 1.2}):
            if name == "plain" and extra:
                continue  # drawn from torch's generator
            call = call | extra
            expected = family.generate(inputs["input_ids"], **mask, **call)
            both = family.generate(inputs["input_ids"], inputs_embeds=embeds, **mask, **call)
            assert both.tolist() == expected.tolist(), name
            if not extra:  # the penalty does not see what was given as embeddings alone
                alone = family.generate(inputs_embeds=embeds, **mask, **call)
                assert alone.tolist() == expected[:, 5:].tolist(), name
        if name not in ("plain", "autoregressive"):
            chunked = family.generate(inputs["input_ids"], **mask, **samplers_of(family)[name], prefill_chunk_size=2)
            again = family.generate(inputs_embeds=embeds, **mask, **samplers_of(family)[name], prefill_chunk_size=2)
            assert again.tolist() == chunked[:, 5:].tolist(), name


@pytest.mark.parametrize("sampler", SAMPLERS)
@torch.no_grad()
def test_embeddings_that_no_ids_have(tiny, sampler):
    """Every sampler reads them as forward() does; a row does not depend on its batch."""
    torch.manual_seed(3)
    embeds, call = torch.randn(2, 5, 32), SAMPLERS[sampler] | CALL | {"return_dict_in_generate": True}
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    output = tiny.generate(inputs_embeds=embeds, attention_mask=mask, pad_token_id=0, output_logits=True, **call)
    assert output.sequences.shape == (2, 5) and output.cache.columns == 5 + 4
    alone = tiny.generate(inputs_embeds=embeds[1:, 2:], **call | {"seed": 2})
    assert alone.sequences.tolist() == output.sequences[1:].tolist()
    if sampler in ("autoregressive", "speculative_wavefront"):
        first = tiny(inputs_embeds=embeds, attention_mask=mask, seeds=torch.tensor([1, 2]), num_steps=4).logits[:, -1]
        torch.testing.assert_close(output.logits[0], first, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_conversation_goes_on_from_embeddings(tiny):
    embeds, call = torch.randn(1, 5, 32), SAMPLERS["speculative_wavefront"] | CALL
    first = tiny.generate(inputs_embeds=embeds, return_dict_in_generate=True, **call)
    more = torch.cat((embeds, tiny.get_input_embeddings()(first.sequences)), dim=1)
    again = tiny.generate(inputs_embeds=more, cache=first.cache, **call)
    assert again.tolist() == tiny.generate(inputs_embeds=more, **call).tolist()


@torch.no_grad()
def test_an_adapted_model():
    torch.manual_seed(0)
    model = enable_recurrent_depth(LoopedLM(LoopedConfig()).eval(), LoopedAdapter)
    inputs = left_pad(ROWS)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    for name, call in samplers_of(model).items():
        new = model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], **call)
        assert new.tolist() == model.generate(**inputs, **call)[:, 5:].tolist(), name


def test_what_does_not_fit_is_refused(tiny):
    embeds = torch.zeros(1, 3, 32)
    with pytest.raises(ValueError, match=r"inputs_embeds has shape \(1, 3, 32\) and attention_mask \(1, 4\)"):
        tiny.generate(inputs_embeds=embeds, attention_mask=torch.ones(1, 4), sampler="adaptive", max_new_tokens=2)
    with pytest.raises(ValueError, match="padding_side = 'left'"):
        mask = torch.tensor([[1, 1, 0]])
        tiny.generate(inputs_embeds=embeds, attention_mask=mask, sampler="adaptive", max_new_tokens=2)
    with pytest.raises(ValueError, match="exceeds the context of 128"):
        tiny.generate(inputs_embeds=torch.zeros(1, 127, 32), sampler="adaptive", max_new_tokens=2)


# --- soft prompts ---


def soft(model):
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    return get_peft_model(copy.deepcopy(model), config)


@ALL
def test_a_soft_prompt_trains(family):
    model = soft(family).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.1)
    ids, losses = torch.tensor(ROWS[:1]), []
    for _ in range(6):
        torch.manual_seed(1)
        loss = model(input_ids=ids, labels=ids, num_steps=3).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    learned = [name for name, p in model.named_parameters() if p.requires_grad]
    assert learned == ["prompt_encoder.default.embedding.weight"]


@TWO_FAMILIES
@torch.no_grad()
def test_every_sampler_decodes_behind_a_soft_prompt(family, tmp_path):
    """As behind the embeddings it stands for. (In a batch PEFT puts it before the padding.)"""
    model, inputs = soft(family).eval(), left_pad(ROWS)
    ids, ones = inputs["input_ids"], torch.ones(3, 4, dtype=torch.long)
    embeds = torch.cat((model.get_prompt(3), family.get_input_embeddings()(ids)), dim=1)
    mask = torch.cat((ones, inputs["attention_mask"]), dim=1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(family), tmp_path).eval()
    for name, call in samplers_of(family).items():
        text = model.generate(**inputs, **call).tolist()
        expected = family.generate(ids, inputs_embeds=embeds, attention_mask=mask, **call)
        assert text == expected.tolist(), name
        assert text != family.generate(**inputs, **call).tolist(), name
        assert loaded.generate(**inputs, **call).tolist() == text, name
        sampled = call | {"do_sample": True}
        if name != "plain":
            text = model.generate(**inputs, **sampled).tolist()
            expected = family.generate(ids, inputs_embeds=embeds, attention_mask=mask, **sampled)
            assert text == expected.tolist(), name


@READS_IDS
def test_models_that_read_ids_refuse_embeddings(family):
    """By forward() and generate(), alone and with ids, and as a soft prompt; with every sampler."""
    embeds, message = torch.randn(1, 5, family.config.hidden_size), "inputs_embeds cannot take the place of input_ids"
    bases = [family.base_model] if isinstance(family.base_model, RecurrentDepthModel) else []
    for model in (family, *bases):
        with pytest.raises(ValueError, match=message):
            model(inputs_embeds=embeds)
    ids = torch.tensor(ROWS[:1])
    for call in samplers_of(family).values():
        for prompt in ({}, {"input_ids": ids}):
            with pytest.raises(ValueError, match=message):
                family.generate(**prompt, inputs_embeds=embeds, **call)
        with pytest.raises(ValueError, match=message):
            soft(family).generate(input_ids=ids, **call)


# --- the names PEFT reads ---

STANDARD = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_standard_names_are_in_the_config(name, tmp_path):
    config = AutoConfig.from_pretrained(FAMILIES[name])
    found = config.to_dict()
    assert {each: found[each] for each in STANDARD} == {each: getattr(config, each) for each in STANDARD}
    again = type(config).from_dict(found)
    assert again.to_dict() == found
    config.save_pretrained(tmp_path / "first")
    AutoConfig.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = ((tmp_path / which / "config.json").read_text() for which in ("first", "second"))
    assert first == second
    # A file says every size once.
    assert not any(f'"{alias}"' in first for alias in config.attribute_map)


def test_sizes_under_their_other_names():
    by_alias = RavenConfig(
        hidden_size=32, num_attention_heads=2, intermediate_size=48, vocab_size=61, max_position_embeddings=128
    )
    assert (by_alias.n_embd, by_alias.n_heads, by_alias.head_dim, by_alias.block_size) == (32, 2, 16, 128)
    assert by_alias.init_values["embed_scale"] == 32**0.5
    with pytest.raises(ValueError, match="n_embd=32 and hidden_size=64 are two names"):
        tiny_config(hidden_size=64)

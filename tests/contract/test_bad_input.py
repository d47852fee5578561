"""Bad input is refused before any compute, by an error that names it and says what to do."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, GPT2LMHeadModel

from hf_diffusion_forcing import DiffusionForcingConfig, RecurrentDepthGenerationConfig

PROMPT = torch.tensor([[3, 1, 4]])


@pytest.fixture
def idle(tiny, monkeypatch):
    """A model that fails the test if anything is computed."""

    def compute(*args, **kwargs):
        raise AssertionError("the model was run")

    monkeypatch.setattr(type(tiny), "embed", compute)
    return tiny


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"wavefront": 0}, ValueError, "wavefront=0 must be at least 1"),
        ({"wavefront": 2.5}, TypeError, "wavefront=2.5 must be an int"),
        ({"headway": 0}, ValueError, "headway=0"),
        ({"inner_recurrence": 0}, ValueError, "inner_recurrence=0"),
        ({"inner_recurrence": 7}, ValueError, "inner_recurrence=7 is more than num_steps=6"),
        ({"inner_recurrence": 4, "max_steps": 3}, ValueError, "inner_recurrence=4 is more than max_steps=3"),
        ({"exit_threshold": -0.1}, ValueError, "exit_threshold=-0.1"),
        ({"exit_threshold": float("nan")}, ValueError, "exit_threshold=nan"),
        ({"exit_threshold": "small"}, TypeError, "exit_threshold='small'"),
        ({"num_steps": 0}, ValueError, "num_steps=0"),
        ({"num_steps": True}, TypeError, "num_steps=True"),
        ({"embedding_momentum": 1.5}, ValueError, "between 0 and 1"),
        ({"state_noise": -1}, ValueError, "state_noise=-1"),
        ({"state_scale": float("inf")}, ValueError, "state_scale=inf"),
        ({"kv_sharing": "first"}, ValueError, "kv_sharing='first'"),
        ({"seed": "x"}, TypeError, "seed='x'"),
        ({"seed": [1, 2]}, ValueError, "2 entries for 1 rows"),
        ({"wavefrnt": 3}, ValueError, "did you mean 'wavefront'"),
        ({"max_new_token": 3}, ValueError, "did you mean 'max_new_tokens'"),
        ({"sampler": "diffusion"}, ValueError, "did you mean 'diffusion_forcing'"),
        ({"sampler": "autoregressive", "wavefront": 3}, ValueError, "wavefront=3 is not a setting of"),
        ({"sampler": None, "wavefront": 3}, ValueError, "pass sampler='diffusion_forcing'"),
        ({"num_beams": 2}, ValueError, "num_beams"),
        ({"num_beams": 2, "do_sample": True}, ValueError, "beam_sample"),
        ({"prompt_lookup_num_tokens": 3}, ValueError, "assisted_generation"),
        ({"use_cache": False}, ValueError, "use_cache=False"),
        ({"cache_implementation": "static"}, ValueError, "cache_implementation='static'"),
        ({"output_attentions": True, "return_dict_in_generate": True}, ValueError, "output_attentions"),
        ({"position_ids": torch.arange(1, 4)[None]}, ValueError, "position_ids do not agree with attention_mask"),
        ({"position_ids": torch.tensor([[0, 1, 0]])}, ValueError, "position_ids do not agree with attention_mask"),
        ({"position_ids": torch.zeros(1, 4, dtype=torch.long)}, ValueError, r"position_ids has shape \(1, 4\)"),
        ({"token_type_ids": torch.tensor([[0, 1, 1]])}, ValueError, "token_type_ids has entries other than 0"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 0, 32)}, ValueError, "prompt is empty: inputs_embeds"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(3, 32)}, ValueError, r"inputs_embeds has shape \(3, 32\)"),
        ({"seeds": torch.tensor([1])}, ValueError, "did you mean 'seed'"),
        ({"seed": 2**63 - 1}, ValueError, "64 bits"),
        ({"guidance_scale": 1.5}, ValueError, "guidance_scale=1.5"),
        ({"cache": DynamicCache()}, TypeError, "RecurrentDepthCache"),
        ({"max_new_tokens": 126}, ValueError, r"max_new_tokens <= 125"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, ValueError, "prompt is empty"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, ValueError, "prompt is empty"),
        ({"input_ids": torch.tensor([[1, 61]])}, ValueError, "holds 61, outside the vocabulary of 61"),
        ({"input_ids": torch.tensor([[1, -1]])}, ValueError, "holds -1"),
        ({"input_ids": torch.ones(1, 128, dtype=torch.long)}, ValueError, "fewer than 128 tokens"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, ValueError, "padding_side = 'left'"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, ValueError, "padding_side = 'left'"),
        ({"attention_mask": torch.tensor([[0, 0, 0]])}, ValueError, "all zeros"),
    ],
)
def test_generate(idle, kwargs, error, message):
    call = {"input_ids": PROMPT, "sampler": "diffusion_forcing", "max_new_tokens": 4} | kwargs
    with pytest.raises(error, match=message):
        idle.generate(**call)


def test_assistant_model(idle):
    with pytest.raises(ValueError, match="assistant_model"):
        idle.generate(PROMPT, sampler="diffusion_forcing", assistant_model=idle)


def test_a_cache_of_the_other_sharing(tiny):
    first = tiny.generate(PROMPT, sampler="autoregressive", max_new_tokens=2, return_dict_in_generate=True)
    common = {"cache": first.cache, "max_new_tokens": 2}
    for said in (
        {"sampler": "diffusion_forcing", "kv_sharing": "last"},
        {"sampler_config": DiffusionForcingConfig()},
        {"generation_config": RecurrentDepthGenerationConfig(sampler_config={"kv_sharing": 2}, sampler="adaptive")},
    ):
        with pytest.raises(ValueError, match="cache was made with kv_sharing='none'"):
            tiny.generate(first.sequences, **common, **said)
    shared = tiny.generate(PROMPT, sampler="diffusion_forcing", max_new_tokens=2, return_dict_in_generate=True)
    with pytest.raises(ValueError, match="leave it out"):
        tiny.generate(shared.sequences, sampler="speculative_wavefront", cache=shared.cache, max_new_tokens=2)


@pytest.mark.parametrize("sampler", [{}, {"sampler": False}, {"num_beams": 2}, {"sampler": "autoregressive"}])
@pytest.mark.parametrize("name", ["dynamic", "static", "offloaded", "offloaded_static", "quantized", "paged"])
def test_a_cache_of_transformers_own(idle, sampler, name):
    if name != "paged":  # as a keyword it is generate_batch()
        with pytest.raises(ValueError, match=f"cache_implementation='{name}'"):
            idle.generate(PROMPT, **sampler, cache_implementation=name, max_new_tokens=2)
    stored = RecurrentDepthGenerationConfig(cache_implementation=name)
    with pytest.raises(ValueError, match=f"cache_implementation='{name}'"):
        idle.generate(PROMPT, **sampler, generation_config=stored, max_new_tokens=2)


def test_a_model_that_is_not_recurrent_depth():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match="sampler"):
        model.generate(PROMPT, sampler="diffusion_forcing", max_new_tokens=2)


def test_rows_of_different_lengths_need_a_pad_token(idle):
    rows = PROMPT.repeat(2, 1)
    with pytest.raises(ValueError, match="pad_token_id is not set"):
        idle.generate(rows, sampler="diffusion_forcing", max_time=5.0, max_new_tokens=4)


def test_a_streamer_takes_one_row(idle):
    class Streamer:
        def put(self, value): ...

        def end(self): ...

    with pytest.raises(ValueError, match="one row; the batch has 2"):
        idle.generate(PROMPT.repeat(2, 1), sampler="diffusion_forcing", streamer=Streamer(), max_new_tokens=4)


def test_a_cache_that_holds_more_than_the_text(tiny):
    first = tiny.generate(PROMPT, sampler="diffusion_forcing", max_new_tokens=6, return_dict_in_generate=True)
    with pytest.raises(ValueError, match="holds 8 columns"):
        tiny.generate(PROMPT, sampler="diffusion_forcing", cache=first.cache, max_new_tokens=2)


def test_forward(tiny):
    with pytest.raises(ValueError, match="position_ids holds 1 at row 0, column 0"):
        tiny(PROMPT, position_ids=torch.arange(1, 4)[None])
    with pytest.raises(ValueError, match="position_ids holds 2 at row 0, column 1"):
        tiny(PROMPT, position_ids=torch.tensor([[0, 2, 3]]))
    with pytest.raises(ValueError, match=r"position_ids has shape \(1, 4\)"):
        tiny(PROMPT, position_ids=torch.arange(4)[None])
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds, and got both"):
        tiny(PROMPT, inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds, and got neither"):
        tiny()
    with pytest.raises(ValueError, match=r"inputs_embeds has shape \(3, 32\)"):
        tiny(inputs_embeds=torch.zeros(3, 32))
    with pytest.raises(ValueError, match="token_type_ids has entries other than 0"):
        tiny(PROMPT, token_type_ids=torch.tensor([[0, 1, 1]]))
    with pytest.raises(TypeError, match="cache is a DynamicCache; a recurrent-depth model needs a RecurrentDepthCache"):
        tiny(PROMPT, cache=DynamicCache())
    with pytest.raises(ValueError, match="num_steps=0"):
        tiny(PROMPT, num_steps=0)
    with pytest.raises(ValueError, match="num_step"):
        tiny(PROMPT, num_step=2)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 2\)"):
        tiny(PROMPT, attention_mask=torch.ones(1, 2))
    with pytest.raises(ValueError, match="block_size=128"):
        tiny(torch.ones(1, 129, dtype=torch.long))


def test_plain_decoding_still_has_beams(tiny):
    """Without a sampler, generate() is transformers' own."""
    ids = tiny.generate(PROMPT, num_beams=3, max_new_tokens=5, state_scale=0.0, num_steps=3)
    assert ids.shape == (1, 8)
    without_cache = tiny.generate(PROMPT, num_beams=3, max_new_tokens=5, state_scale=0.0, num_steps=3, use_cache=False)
    assert ids.tolist() == without_cache.tolist()


def test_an_unknown_model_type_is_transformers_own_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no_such_type"}')
    with pytest.raises(ValueError, match="no_such_type"):
        AutoModelForCausalLM.from_pretrained(tmp_path)

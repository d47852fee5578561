"""Random shapes of every family: a cache changes nothing, lossless is autoregression, and configs survive a file."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from hf_diffusion_forcing import NanbeigeConfig, OuroConfig, ParcaeConfig
from support import left_pad, tiny_config

HEADS = st.sampled_from([(1, 1), (2, 1), (4, 2), (6, 2), (3, 3)])
HEAD_DIMS = st.sampled_from([2, 4, 8])


def looped(config_class, **more):
    """A looped family's config, whose heads need not make up the channels."""
    sizes = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 20, "max_position_embeddings": 64}
    return st.builds(
        lambda heads, **drawn: config_class(
            **sizes, num_attention_heads=heads[0], num_key_value_heads=heads[1], **drawn
        ),
        heads=HEADS,
        head_dim=HEAD_DIMS,
        num_hidden_layers=st.integers(1, 3),
        tie_word_embeddings=st.booleans(),
        rope_theta=st.sampled_from([1e2, 1e4, 7e7]),
        **more,
    )


def raven(layout):
    """Of one layout; Huginn's has as many keys as queries."""
    heads = st.sampled_from([(1, 1), (3, 3)]) if layout == "huginn" else HEADS
    return st.builds(
        lambda heads, **drawn: tiny_config(
            layout=layout, n_embd=24, n_heads=heads[0], num_key_value_heads=heads[1], **drawn
        ),
        heads=heads,
        head_dim=HEAD_DIMS,
        n_layers_in_prelude=st.integers(0, 2),
        n_layers_in_recurrent_block=st.integers(1, 2),
        n_layers_in_coda=st.integers(0, 2),
        mean_recurrence=st.integers(2, 5),
        tie_word_embeddings=st.booleans(),
    )


def parcae():
    """Its heads make up the channels, of which there are at least 32."""
    return st.builds(
        lambda heads, **drawn: ParcaeConfig(
            vocab_size=61, n_embd=32, intermediate_size=20, block_size=64, num_attention_heads=heads, **drawn
        ),
        heads=st.sampled_from([1, 2, 4, 8]),
        n_layers_in_prelude=st.integers(0, 2),
        n_layers_in_recurrent_block=st.integers(1, 3),
        n_layers_in_coda=st.integers(0, 2),
        mean_recurrence=st.integers(2, 5),
        mean_backprop_depth=st.integers(1, 3),
        tie_word_embeddings=st.booleans(),
    )


CONFIGS = {
    "huginn": raven("huginn"),
    "llama": raven("llama"),
    "olmo": raven("olmo"),
    "ouro": looped(OuroConfig, total_ut_steps=st.integers(2, 5)),
    "nanbeige": looped(NanbeigeConfig, num_loops=st.integers(2, 5), skip_loop_final_norm=st.booleans()),
    "parcae": parcae(),
}


def check(config, seed, cut, folder):
    config.save_pretrained(folder)
    stored = AutoConfig.from_pretrained(folder)
    assert stored.to_dict() | {"_name_or_path": None} == config.to_dict() | {"_name_or_path": None}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(stored).eval()
    model.generation_config.eos_token_id = None
    ids, seeds = torch.randint(0, 61, (2, 9)), torch.tensor([1, 2])
    with torch.no_grad():
        whole = model(ids, seeds=seeds, use_cache=False).logits
        first = model(ids[:, :cut], seeds=seeds)
        rest = model(ids[:, cut:], seeds=seeds, cache=first.cache)
    torch.testing.assert_close(torch.cat((first.logits, rest.logits), dim=1), whole, atol=1e-4, rtol=0)
    common = {"seed": seed, "max_new_tokens": 6}
    rows = left_pad([[3, 1, 4], [1, 5, 9, 2, 6]])
    expected = model.generate(**rows, sampler="autoregressive", **common).tolist()
    assert model.generate(**rows, sampler="speculative_wavefront", **common).tolist() == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_random_configs(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp(name)

    @settings(suppress_health_check=[HealthCheck.too_slow], max_examples=8)
    @given(config=CONFIGS[name], seed=st.integers(0, 99), cut=st.integers(1, 8))
    def run(config, seed, cut):
        check(config, seed, cut, folder)

    run()

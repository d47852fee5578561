"""Laws 3, 4, 6 and 8 over random prompts, paddings, ends and settings, on random weights."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_diffusion_forcing import RavenForCausalLM
from support import left_pad, tiny_config
from support.heads import with_start_head

VOCABULARY = 61


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return with_start_head(RavenForCausalLM(tiny_config()).eval())


prompts = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=11)
samplers = st.one_of(
    st.fixed_dictionaries({"sampler": st.just("autoregressive"), "kv_sharing": st.sampled_from(["last", "none", 2])}),
    st.fixed_dictionaries(
        {
            "sampler": st.just("adaptive"),
            "kv_sharing": st.sampled_from(["last", "none", 2]),
            "exit_criterion": st.sampled_from(["latent_difference", "kl", {"name": "fixed", "steps": 3}]),
            "prefill_steps": st.integers(1, 8),
            "learned_start": st.booleans(),
        }
    ),
    st.fixed_dictionaries(
        {
            "sampler": st.just("diffusion_forcing"),
            "wavefront": st.integers(1, 12),
            "headway": st.integers(1, 4),
            "draft_tokens": st.sampled_from([1, 2, 5]),
            "draft_source": st.just({"name": "prompt_lookup", "min_ngram": 1}),
            "inner_recurrence": st.integers(1, 4),
            "exit_threshold": st.sampled_from([0.0, 0.03, 0.3, 10.0]),
            "kv_sharing": st.sampled_from(["last", "none", 2]),
            "embedding_momentum": st.sampled_from([0.0, 0.2]),
            "prefill_steps": st.integers(1, 8),
            "state_noise": st.sampled_from([0.0, 0.1]),
            **dict.fromkeys(("continuous_compute", "learned_start"), st.booleans()),
        }
    ).filter(lambda settings: not (settings["continuous_compute"] and settings["learned_start"])),
)
calls = st.fixed_dictionaries(
    {
        "num_steps": st.integers(4, 6),
        "max_new_tokens": st.integers(1, 14),
        "do_sample": st.booleans(),
        "seed": st.integers(0, 1000),
    }
)
ends = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20, unique=True)


def continue_rows(model, rows, sampler, call, end, seeds, pad=0):
    """The new tokens of every row, cut behind the first end token; checks law 8 on the way."""
    inputs = left_pad(rows)
    width = inputs["input_ids"].shape[1]
    output = model.generate(
        **inputs,
        **sampler,
        **call | {"seed": seeds},
        eos_token_id=end,
        pad_token_id=pad,
        return_dict_in_generate=True,
    )
    assert output.sequences[:, :width].tolist() == inputs["input_ids"].tolist()
    texts = []
    for new in output.sequences[:, width:].tolist():
        first = next((n for n, token in enumerate(new) if token in end), None)
        text = new if first is None else new[: first + 1]
        assert len(text) <= call["max_new_tokens"]
        assert first is not None or len(new) == call["max_new_tokens"]
        assert all(token == pad for token in new[len(text) :])
        texts.append(text)
    assert max(map(len, texts)) == output.sequences.shape[1] - width
    if sampler["sampler"] != "autoregressive":
        stats = output.stats
        assert stats.tokens_committed == [len(text) for text in texts]
        ticks_of_a_token = math.floor(call["num_steps"] / sampler.get("inner_recurrence", 1))
        assert stats.ticks <= (max(map(len, texts)) - 1) * ticks_of_a_token
    return texts


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(rows=prompts, sampler=samplers, call=calls, end=ends, extra=st.integers(0, 5))
def test_rows_alone_together_and_padded(model, rows, sampler, call, end, extra):
    seeds = [call["seed"] + 7 * row for row in range(len(rows))]
    together = continue_rows(model, rows, sampler, call, end, seeds)
    for row, (text, seed) in enumerate(zip(together, seeds, strict=True)):
        assert continue_rows(model, [rows[row]], sampler, call, end, [seed]) == [text]
    # More padding on the left of all, by a longer row that is looked at no further.
    longer = [*rows, [1] * (max(map(len, rows)) + extra)]
    assert continue_rows(model, longer, sampler, call, end, [*seeds, 5])[: len(rows)] == together


@given(rows=prompts, call=calls, end=ends, kv_sharing=st.sampled_from(["last", "none", 3]))
def test_one_position_at_a_time_is_autoregression(model, rows, call, end, kv_sharing):
    seeds = [call["seed"] + row for row in range(len(rows))]
    samplers = (
        {"sampler": "autoregressive"},
        {"sampler": "diffusion_forcing", "wavefront": 1, "inner_recurrence": call["num_steps"]},
        {"sampler": "adaptive", "exit_threshold": 0.0},
        {"sampler": "adaptive", "exit_criterion": {"name": "fixed", "steps": call["num_steps"]}},
    )
    texts = [continue_rows(model, rows, each | {"kv_sharing": kv_sharing}, call, end, seeds) for each in samplers]
    assert all(text == texts[0] for text in texts)

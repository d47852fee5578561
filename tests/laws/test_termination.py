"""Laws 6 and 8: every call ends within its budget, and with exactly the right number of tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.streamers import BaseStreamer

from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.generation import compiled
from support import left_pad, new_tokens, random_model
from support.matrix import cases, crossed

EXACT = [
    {"sampler": "autoregressive"},
    {"sampler": "diffusion_forcing", "headway": 3},
    {"sampler": "speculative_wavefront", "draft_depth": 2},
]
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def forcing(model, **kwargs):
    return model.generate(
        PROMPT, sampler="diffusion_forcing", seed=0, return_dict_in_generate=True, **{"max_new_tokens": 20} | kwargs
    )


@pytest.mark.parametrize(
    ("wavefront", "inner_recurrence"), crossed([1, 5, 64], [1, 2, 4, 6], keep=[(1, 1), (5, 4), (64, 2)])
)
def test_threshold_zero_ends_by_the_budget(tiny, inner_recurrence, wavefront):
    output = forcing(tiny, exit_threshold=0.0, inner_recurrence=inner_recurrence, wavefront=wavefront)
    assert output.stats.tokens_committed == [20]
    # The front never gets a tick that would take it past num_steps.
    ticks_per_token = math.floor(tiny.config.mean_recurrence / inner_recurrence)
    assert output.stats.ticks <= 19 * ticks_per_token


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_broken_weights_end_too(tiny, value):
    with torch.no_grad():
        for parameter in tiny.transformer.core_block.parameters():
            parameter.fill_(value)
    output = forcing(tiny, inner_recurrence=2)
    assert output.stats.tokens_committed == [20]
    # One tick is made again with the front alone, to see that it is not a draft's fault.
    assert output.stats.core_passes <= 19 * tiny.config.mean_recurrence + 2


def test_a_draft_that_overflows_spoils_nothing(tiny):
    """Attention carries NaN to the left of it (0 * NaN); what is committed is as if the draft had been another."""
    settings = {"inner_recurrence": 1, "wavefront": 6, "exit_threshold": 0.05}
    expected = forcing(tiny, wavefront=1, inner_recurrence=6).sequences[0].tolist()
    drafts = []
    spy = BaseStreamer()
    spy.put, spy.end, spy.put_draft = lambda value: None, lambda: None, lambda value: drafts.extend(value.tolist())
    text = forcing(tiny, **settings, streamer=spy).sequences[0].tolist()
    only_drafted = set(drafts) - set(text) - set(expected)
    assert only_drafted
    with torch.no_grad():
        tiny.lm_head.weight = torch.nn.Parameter(tiny.lm_head.weight.clone())
        tiny.transformer.wte.weight[sorted(only_drafted)] = float("nan")
    output = forcing(tiny, **settings)
    assert output.sequences[0].tolist() == text


@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_draft_that_overflows_spoils_no_row_of_a_batch(tiny, is_compiled, monkeypatch):
    """Rows of a batch, and compiled passes, read keys past a front that is refined alone: to the longest row's last
    position, or to the next bucket."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    rows, embedded = [PROMPT[0].tolist(), [2, 7, 1] * 5], set()
    settings = {"sampler": "diffusion_forcing", "inner_recurrence": 1, "wavefront": 6, "headway": 5, "seed": [0, 1]}
    settings |= {"exit_threshold": 0.0, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
    table = tiny.transformer.wte
    hook = table.register_forward_pre_hook(lambda module, args: embedded.update(args[0].flatten().tolist()))
    texts = tiny.generate(**left_pad(rows), **settings)
    hook.remove()
    fronts = tiny.generate(**left_pad(rows), **settings | {"wavefront": 1})
    only_drafted = embedded - set(texts.flatten().tolist()) - set(fronts.flatten().tolist())
    assert only_drafted
    with torch.no_grad():
        tiny.lm_head.weight = torch.nn.Parameter(tiny.lm_head.weight.clone())
        table.weight[sorted(only_drafted)] = float("nan")
    alone = [tiny.generate(torch.tensor([row]), **settings | {"seed": seed})[0] for seed, row in enumerate(rows)]
    together = tiny.generate(**left_pad(rows), **settings, compile=is_compiled)
    for got, expected in zip(together, alone, strict=True):
        assert torch.equal(got[-8:], expected[-8:]) and not only_drafted & set(expected.tolist())


def test_max_steps_bounds_the_front(tiny):
    short = forcing(tiny, exit_threshold=0.0, inner_recurrence=1, max_steps=2, wavefront=1)
    assert short.stats.core_passes == 19 * 2


def test_a_large_threshold_freezes_every_tick(tiny):
    output = forcing(tiny, exit_threshold=1e9, inner_recurrence=1)
    assert output.stats.ticks == 19
    assert output.stats.tokens_per_forward == 1.0


@pytest.mark.parametrize("settings", EXACT)
@pytest.mark.parametrize("max_new_tokens", cases([1, 2, 7], keep=[1, 7]))
def test_max_new_tokens_is_exact(tiny, settings, max_new_tokens):
    ids = tiny.generate(PROMPT, max_new_tokens=max_new_tokens, **settings)
    assert ids.shape[1] == PROMPT.shape[1] + max_new_tokens


def test_max_length_counts_the_prompt(tiny):
    assert tiny.generate(PROMPT, sampler="diffusion_forcing", max_length=11).shape[1] == 11


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    eos=st.integers(0, 60),
    wavefront=st.integers(1, 9),
    headway=st.integers(1, 4),
    inner_recurrence=st.integers(1, 4),
    exit_threshold=st.sampled_from([0.0, 0.2, 1.0]),
    max_new_tokens=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_any_settings_end_exactly(
    lengths, eos, wavefront, headway, inner_recurrence, exit_threshold, max_new_tokens, seed
):
    """Rows end at their first EOS or at the limit, never a token too many or too few, and alone as in the batch."""
    model = random_model()
    generator = torch.manual_seed(seed)
    rows = [torch.randint(0, 61, (length,), generator=generator).tolist() for length in lengths]
    common = {
        "sampler": "diffusion_forcing",
        "wavefront": wavefront,
        "headway": headway,
        "inner_recurrence": inner_recurrence,
        "exit_threshold": exit_threshold,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": eos,
        "pad_token_id": 0,
        "do_sample": True,
        "top_k": 0,
    }
    inputs = left_pad(rows)
    together = new_tokens(model.generate(**inputs, seed=list(range(len(rows))), **common), inputs["input_ids"].shape[1])
    for row, prompt in enumerate(rows):
        alone = new_tokens(model.generate(**left_pad([prompt]), seed=row, **common), len(prompt))[0]
        end = alone.index(eos) + 1 if eos in alone else max_new_tokens
        assert len(alone) == end
        assert together[row][:end] == alone
        assert set(together[row][end:]) <= {0}


def test_several_eos_ids(tiny):
    free = new_tokens(tiny.generate(PROMPT, sampler="diffusion_forcing", seed=0, max_new_tokens=20), PROMPT.shape[1])[0]
    stops = [free[6], free[9]]
    first = min(free.index(stop) for stop in stops)
    ids = tiny.generate(PROMPT, sampler="diffusion_forcing", seed=0, max_new_tokens=20, eos_token_id=stops)
    assert new_tokens(ids, PROMPT.shape[1])[0] == free[: first + 1]


@pytest.mark.parametrize("settings", EXACT)
def test_a_stop_string_ends_a_row_at_the_token_that_completes_it(bundled, settings):
    model, tokenizer = bundled
    problem = next(problems(77, held_out=True, kind="worked"))
    inputs = tokenizer(problem.prompt, return_tensors="pt")
    ids = model.generate(**inputs, **settings, seed=0, stop_strings=["comes"], tokenizer=tokenizer)
    text = tokenizer.decode(ids[0, inputs.input_ids.shape[1] :])
    assert text.count("comes") == 1
    assert "comes" not in tokenizer.decode(ids[0, inputs.input_ids.shape[1] : -1])


def test_a_custom_stopping_criterion_sees_committed_tokens_one_at_a_time(huginn_mini, prompts):
    from transformers import StoppingCriteria, StoppingCriteriaList

    seen = []

    class Stop(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids.shape[1])
            return torch.tensor([input_ids.shape[1] >= 140 for _ in input_ids])

    ids = huginn_mini.generate(
        torch.tensor([prompts[0]]),
        sampler="diffusion_forcing",
        num_steps=8,
        max_new_tokens=64,
        headway=4,
        stopping_criteria=StoppingCriteriaList([Stop()]),
    )
    start = len(prompts[0])
    assert seen == list(range(start + 1, 141))
    assert ids.shape[1] == 140

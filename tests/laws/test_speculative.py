"""Law 5: the lossless wavefront gives autoregression's text, token for token, however its drafts fare."""

from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from hf_diffusion_forcing import RavenForCausalLM, SpeculativeWavefrontConfig
from hf_diffusion_forcing.cache import Slots
from hf_diffusion_forcing.evaluation.problems import problems
from support import left_pad, new_tokens, tiny_config
from support.matrix import cases, crossed

SPECULATIVE = {"sampler": "speculative_wavefront"}
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def every_depth(*budgets):
    """num_steps with every draft depth that fits, without and with a second one."""
    fitting = [(r, k) for r in budgets for k in range(1, r) if r % k == 0]
    return [(r, k, 0) for r, k in fitting] + [(r, k, 2 * k) for r, k in fitting if 2 * k < r]


def both(model, inputs, draft_depth=None, second=None, **common):
    """The texts of the lossless wavefront and of autoregression."""
    expected = model.generate(**inputs, sampler="autoregressive", **common)
    depths = {"draft_depth": draft_depth, "second_draft_depth": second}
    return model.generate(**inputs, **SPECULATIVE, **depths, **common).tolist(), expected.tolist()


def run(model, ids=PROMPT, **kwargs):
    defaults = SPECULATIVE | {"return_dict_in_generate": True, "seed": 0, "max_new_tokens": 20}
    return model.generate(ids, **defaults | kwargs)


@pytest.fixture(scope="module")
def wild():
    """Random weights large enough that shallow and deep readouts hardly ever agree, and small enough that rounding
    does not grow from recurrence to recurrence."""
    torch.manual_seed(1)
    model = RavenForCausalLM(tiny_config(mean_recurrence=8)).eval()
    with torch.no_grad():
        for parameter in model.transformer.core_block.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2)
    return model


@pytest.mark.parametrize(
    ("depths", "do_sample"),
    crossed(
        [*every_depth(4, 8), (16, 4, 0), (32, 2, 4)],
        [False, True],
        keep=[((4, 2, 0), False), ((8, 1, 2), True), ((16, 4, 0), False), ((32, 2, 4), False)],
    ),
)
def test_law_5_on_a_trained_model(huginn_mini, prompts, depths, do_sample):
    num_steps, draft_depth, second = depths
    common = {"num_steps": num_steps, "max_new_tokens": 10, "seed": 3, "do_sample": do_sample}
    ids, expected = both(huginn_mini, left_pad(prompts), draft_depth, second, **common)
    assert ids == expected
    ids, expected = both(huginn_mini, {"input_ids": torch.tensor([prompts[1]])}, draft_depth, second, **common)
    assert ids == expected


@pytest.mark.parametrize(
    ("depths", "do_sample"),
    crossed(every_depth(4, 8), [False, True], keep=[((4, 1, 2), False), ((8, 2, 0), True), ((8, 1, 2), False)]),
)
def test_law_5_where_drafts_are_wrong(wild, depths, do_sample):
    num_steps, draft_depth, second = depths
    rows = left_pad([[3, 1, 4], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9, 7, 9], [3, 2]])
    common = {"num_steps": num_steps, "max_new_tokens": 16, "seed": 3, "do_sample": do_sample, "top_k": 0}
    ids, expected = both(wild, rows, draft_depth, second, **common)
    assert ids == expected
    stats = run(wild, num_steps=num_steps, draft_depth=draft_depth, second_draft_depth=second).stats
    assert stats.acceptance[draft_depth] < 0.9


@given(
    ids=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    seed=st.integers(-(2**62), 2**62),
    depths=st.sampled_from(every_depth(4, 6)),
    do_sample=st.booleans(),
    temperature=st.floats(0.3, 2.0),
)
def test_law_5_over_prompts_and_seeds(wild, ids, seed, depths, do_sample, temperature):
    num_steps, draft_depth, second = depths
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if do_sample else {}
    common = {"num_steps": num_steps, "seed": seed, "max_new_tokens": 10} | sampling
    got, expected = both(wild, {"input_ids": torch.tensor([ids])}, draft_depth, second, **common)
    assert got == expected


@pytest.mark.parametrize(
    ("kind", "depths"),
    crossed(
        ["worked", "mental"],
        [(1, 4), (2, 0), (2, 8)],
        keep=[("worked", (2, 8)), ("mental", (1, 4)), ("mental", (2, 0))],
    ),
)
def test_law_5_on_the_bundled_checkpoint(bundled, kind, depths):
    model, tokenizer = bundled
    texts = [p.prompt for p in islice(problems(11, held_out=True, kind=kind), 6)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    ids, expected = both(model, inputs, *depths, num_steps=16, seed=0, max_new_tokens=48)
    assert ids == expected


@pytest.mark.slow
def test_law_5_over_a_thousand_texts(bundled):
    """Greedy and sampled, alone and in batches, at several depths."""
    model, tokenizer = bundled
    texts = [p.prompt for p in islice(problems(12, held_out=True), 512)]
    compared = 0
    for first in range(0, len(texts), 64):
        inputs = tokenizer(texts[first : first + 64], return_tensors="pt", padding=True)
        for do_sample, depths in ((False, (1, 4)), (True, (2, 0))):
            common = {"num_steps": 16, "seed": first, "do_sample": do_sample, "max_new_tokens": 120}
            ids, expected = both(model, inputs, *depths, **common)
            assert ids == expected
            compared += len(ids)
    assert compared >= 1000


# --- adversaries ---


NEVER = 60
"""A token that a `Contrarian` only drafts."""


class Contrarian(RavenForCausalLM):
    """Its shallow readouts propose a token that the full depth never chooses: every draft is wrong."""

    def decode(self, s, at, readout=0, logits_to_keep=0):
        logits = super().decode(s, at, readout, logits_to_keep).clone()
        readouts = readout.host if isinstance(readout, Slots) else [readout]
        logits[..., NEVER] = logits.new_tensor([-1e4 if each == 0 else 1e4 for each in readouts])
        return logits


@pytest.fixture(scope="module")
def contrarian(wild):
    model = Contrarian(wild.config).eval()
    model.load_state_dict(wild.state_dict())
    return model


@pytest.mark.parametrize(("num_steps", "draft_depth", "second"), cases(every_depth(8), keep=[(8, 2, 0), (8, 1, 2)]))
def test_wrong_drafts_cost_no_more_core_passes_than_autoregression(contrarian, num_steps, draft_depth, second):
    depths = {"draft_depth": draft_depth, "second_draft_depth": second}
    stats = run(contrarian, num_steps=num_steps, max_new_tokens=24, **depths).stats
    assert stats.acceptance[draft_depth] == 0.0
    assert stats.waves == stats.decoded_tokens == 23
    assert stats.core_passes <= 1.3 * num_steps * stats.decoded_tokens
    assert stats.wasted_recurrences > 0
    rows = left_pad([[3, 1, 4], [1, 5, 9, 2, 6]])
    ids, expected = both(contrarian, rows, draft_depth, second, num_steps=num_steps, max_new_tokens=12, seed=1)
    assert ids == expected


def test_drafts_that_are_right_cost_one_tick_a_token(huginn_mini, prompts):
    stats = run(huginn_mini, torch.tensor([prompts[0]]), num_steps=8, draft_depth=2, max_new_tokens=32).stats
    assert stats.acceptance[2] > 0.5
    assert stats.core_passes < 8 * stats.decoded_tokens
    assert stats.mean_accepted_length == stats.decoded_tokens / stats.waves > 1


def test_an_end_in_a_rejected_branch_ends_nothing(contrarian, wild):
    """The drafts are the end token all the time; the text goes on until the full depth says so."""
    text = contrarian.generate(PROMPT, sampler="autoregressive", seed=0, num_steps=8, max_new_tokens=20)[0, 8:].tolist()
    wrong = set(range(61)) - set(text)
    for eos in (sorted(wrong), [text[9]]):
        common = {"num_steps": 8, "seed": 0, "max_new_tokens": 20, "eos_token_id": eos, "pad_token_id": 0}
        ids, expected = both(contrarian, {"input_ids": PROMPT}, 1, **common)
        assert ids == expected
        ids, expected = both(wild, {"input_ids": PROMPT}, 2, 4, **common)
        assert ids == expected


@pytest.mark.parametrize("max_new_tokens", cases([1, 2, 3, 5, 8], keep=[1, 5]))
def test_the_length_is_exact_in_the_middle_of_a_wave(wild, max_new_tokens):
    rows = left_pad([[3, 1, 4], [1, 5, 9, 2, 6]])
    for depths in ((1, 0), (1, 4), (4, 0)):
        common = {"num_steps": 8, "seed": 2, "max_new_tokens": max_new_tokens}
        ids, expected = both(wild, rows, *depths, **common)
        assert ids == expected


def test_stop_strings_across_restarts(huginn_mini, prompts, bundled):
    model, tokenizer = bundled
    texts = [p.prompt for p in islice(problems(13, held_out=True, kind="worked"), 4)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    for stop in (["comes giving"], [". Then"], ["= 1", "is"]):
        common = {"stop_strings": stop, "tokenizer": tokenizer, "seed": 0, "num_steps": 4, "max_new_tokens": 64}
        ids, expected = both(model, inputs, 1, **common)
        assert ids == expected


def test_overflowing_drafts_spoil_nothing(wild):
    """A draft whose states are not finite leaves NaN in the cache, which a mask alone would not keep out."""
    common = {"num_steps": 8, "draft_depth": 1, "max_new_tokens": 24}
    drafts = []
    spy = BaseStreamer()
    spy.put, spy.end, spy.put_draft = lambda value: None, lambda: None, lambda value: drafts.extend(value.tolist())
    text = run(wild, streamer=spy, **common).sequences[0].tolist()
    only_drafted = sorted(set(drafts) - set(text))
    assert only_drafted
    broken = RavenForCausalLM(wild.config).eval()
    broken.load_state_dict(wild.state_dict())
    with torch.no_grad():
        broken.lm_head.weight = torch.nn.Parameter(wild.lm_head.weight.clone())
        broken.transformer.wte.weight[only_drafted] = float("nan")
    assert run(broken, **common).sequences[0].tolist() == text


# --- the contract ---


@pytest.mark.parametrize(
    "processors",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 9, "eos_token_id": [3, 4, 5, 6], "pad_token_id": 0},
        {"do_sample": True, "top_p": 0.8, "temperature": 1.3, "top_k": 0, "repetition_penalty": 1.2},
        {"sequence_bias": {(3, 5): 4.0, (7,): 2.0}},
    ],
)
def test_every_draft_is_chosen_with_its_own_prefix(wild, processors):
    rows = left_pad([[3, 1, 4], [1, 5, 9, 2, 6]])
    common = {"num_steps": 8, "seed": 2, "max_new_tokens": 14} | processors
    for depths in ((1, 0), (2, 4)):
        ids, expected = both(wild, rows, *depths, **common)
        assert ids == expected


def test_a_processor_of_ones_own_sees_true_prefixes_where_it_counts(wild):
    class Alternate(LogitsProcessor):
        """Even tokens after odd lengths, odd ones after even lengths."""

        def __call__(self, input_ids, scores):
            scores = scores.clone()
            scores[:, (input_ids.shape[1] + input_ids[0, -1].item()) % 2 :: 2] = float("-inf")
            return scores

    common = {"num_steps": 8, "seed": 2, "max_new_tokens": 14, "logits_processor": LogitsProcessorList([Alternate()])}
    ids, expected = both(wild, {"input_ids": PROMPT}, 1, 4, **common)
    assert ids == expected


def test_a_conversation_continues_from_either_samplers_cache(huginn_mini, prompts):
    common = {"num_steps": 8, "seed": 0, "max_new_tokens": 10, "return_dict_in_generate": True}
    whole = None
    for first_by, then_by in (("autoregressive", "speculative_wavefront"), ("speculative_wavefront",) * 2):
        first = huginn_mini.generate(torch.tensor([prompts[0]]), sampler=first_by, **common)
        turn = torch.cat((first.sequences, torch.tensor([prompts[1]])), dim=1)
        held = first.cache
        assert held.get_seq_length() == first.sequences.shape[1] - 1
        continued = huginn_mini.generate(turn, sampler=then_by, cache=held, **common).sequences.tolist()
        whole = whole or huginn_mini.generate(turn, sampler="autoregressive", **common).sequences.tolist()
        assert continued == whole


def test_a_deeper_turn_reads_what_a_shallower_one_left(tiny):
    """The first turn has fewer recurrences than the cache has slots; both samplers leave the same in all of them."""
    texts = []
    for sampler in ("autoregressive", "speculative_wavefront"):
        cache = tiny.new_cache(6, "none")
        common = {"seed": 0, "cache": cache, "return_dict_in_generate": True}
        first = tiny.generate(PROMPT, sampler=sampler, num_steps=4, max_new_tokens=9, **common)
        turn = torch.cat((first.sequences, PROMPT), dim=1)
        second = tiny.generate(turn, sampler="autoregressive", num_steps=6, max_new_tokens=9, **common)
        texts.append(second.sequences.tolist())
    assert texts[0] == texts[1]


def test_a_conversation_in_and_out_of_inference_mode(tiny):
    cache = tiny.new_cache(6, "none", 200)
    common = {"seed": 0, "max_new_tokens": 4, "cache": cache} | SPECULATIVE
    text = tiny.generate(PROMPT, **common)
    with torch.inference_mode():
        text = tiny.generate(torch.cat((text, PROMPT), dim=1), **common)
    text = torch.cat((text.clone(), PROMPT), dim=1)
    expected = tiny.generate(text, sampler="autoregressive", seed=0, max_new_tokens=4)
    assert tiny.generate(text, **common).tolist() == expected.tolist()


def test_a_constraint_that_knows_no_drafts(wild):
    """`prefix_allowed_tokens_fn` may raise for a prefix that autoregression would never ask about."""
    common = {"num_steps": 8, "seed": 2, "max_new_tokens": 14}
    text = wild.generate(PROMPT, sampler="autoregressive", **common)[0].tolist()

    def only_this_text(row, ids):
        if ids.tolist() != text[: len(ids)]:
            raise KeyError(tuple(ids.tolist()))
        return list(range(61))

    ids, expected = both(wild, {"input_ids": PROMPT}, 1, 4, prefix_allowed_tokens_fn=only_this_text, **common)
    assert ids == expected == [text]


def test_memory_is_autoregressions_and_one_timeline_of_drafts(tiny):
    """One more entry per position in the coda; nothing else."""
    common = {"seed": 0, "num_steps": 6, "max_new_tokens": 12, "return_dict_in_generate": True}
    autoregressive = tiny.generate(PROMPT, sampler="autoregressive", **common).cache.nbytes
    speculative = run(tiny, draft_depth=1, num_steps=6, max_new_tokens=12).cache.nbytes
    layers = 1 + 6 * 2 + 1
    assert speculative * layers == autoregressive * (layers + 1)


def test_scores_and_logits_are_autoregressions(wild):
    common = {"num_steps": 8, "seed": 0, "max_new_tokens": 9, "output_scores": True, "output_logits": True}
    common |= {"return_dict_in_generate": True, "repetition_penalty": 1.3}
    expected = wild.generate(PROMPT, sampler="autoregressive", **common)
    got = run(wild, draft_depth=2, **common)
    for name in ("scores", "logits"):
        for mine, theirs in zip(got[name], expected[name], strict=True):
            torch.testing.assert_close(mine, theirs.float(), atol=1e-4, rtol=1e-4)


# --- settings ---


def test_default_depth_leaves_about_sixteen_positions():
    for mean_recurrence, depth in ((32, 2), (16, 1), (8, 1), (4, 1), (64, 4), (7, 1)):
        assert SpeculativeWavefrontConfig().resolve(mean_recurrence).draft_depth == depth


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft_depth": 3, "num_steps": 8}, "use 1 or 2 or 4"),
        ({"draft_depth": 8, "num_steps": 8}, "use 1 or 2 or 4"),
        ({"draft_depth": 2, "second_draft_depth": 3, "num_steps": 8}, "use 1"),
        ({"second_draft_depth": 8, "num_steps": 8}, "less than num_steps=8"),
        ({"second_draft_depth": 1, "num_steps": 8}, "leave second_draft_depth out"),
        ({"second_draft_depth": -1}, "second_draft_depth=-1"),
        ({"num_steps": 1}, "sampler='autoregressive'"),
        ({"draft_depth": "deep"}, "'auto' or a number"),
        ({"kv_sharing": "last"}, "leave it out"),
        ({"draft_depth": 0}, "draft_depth=0"),
    ],
)
def test_depths_that_do_not_fit_are_refused(tiny, settings, message):
    with pytest.raises(ValueError, match=message):
        run(tiny, **settings)


def test_a_second_depth_may_not_be_automatic():
    with pytest.raises(TypeError, match="second_draft_depth='auto'"):
        SpeculativeWavefrontConfig(second_draft_depth="auto")


@pytest.mark.parametrize("num_steps", cases([2, 3, 5, 7, 8], keep=[2, 7]))
def test_the_preset_fits_every_depth(tiny, num_steps):
    common = {"num_steps": num_steps, "seed": 0, "max_new_tokens": 8}
    lossless = tiny.generate(PROMPT, sampler_preset="lossless", **common)
    assert lossless.tolist() == tiny.generate(PROMPT, sampler="autoregressive", **common).tolist()


def test_auto_gives_the_same_text(bundled):
    model, tokenizer = bundled
    inputs = tokenizer(next(problems(14, held_out=True, kind="worked")).prompt, return_tensors="pt")
    common = {"num_steps": 16, "seed": 0, "max_new_tokens": 24}
    expected = model.generate(**inputs, sampler="autoregressive", **common)
    chunked = {"prefill_chunk_size": 16}
    for more in ({}, chunked):
        output = model.generate(
            **inputs, **SPECULATIVE, draft_depth="auto", return_dict_in_generate=True, **common, **more
        )
        assert output.stats.draft_depth in (1, 2, 4, 8)
        assert output.sequences.tolist() == expected.tolist()


def test_the_lossless_preset(bundled):
    model, tokenizer = bundled
    inputs = tokenizer(next(problems(15, held_out=True, kind="mental")).prompt, return_tensors="pt")
    expected = model.generate(**inputs, sampler="autoregressive", seed=0)
    output = model.generate(**inputs, sampler_preset="lossless", seed=0, return_dict_in_generate=True)
    assert output.sequences.tolist() == expected.tolist()
    assert output.stats.waves >= 1 and new_tokens(output.sequences, inputs.input_ids.shape[1])

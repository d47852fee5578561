"""Law 5 with several positions entering in a tick: guesses, right or wrong, change the speed and never the text."""

from dataclasses import dataclass, field
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from hf_diffusion_forcing import (
    DraftSource,
    RavenForCausalLM,
    SpeculativeWavefrontConfig,
)
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.generation.guesses import DROPPED
from support import left_pad, tiny_config
from support.matrix import cases

SPECULATIVE = {"sampler": "speculative_wavefront"}
PROMPT = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 3, 1, 4, 1]])


@dataclass
class Constant(DraftSource):
    """Always says the same token: nearly always wrong."""

    token: int = 7

    def propose(self, ids, count):
        return [self.token] * count


@dataclass
class TooMany(DraftSource):
    """Returns more than it was asked for."""

    def propose(self, ids, count):
        return [ids[-1], *range(50)]


@dataclass
class Oracle(DraftSource):
    """Knows the texts, and continues only the beginning of one. Every `slip`-th token it says is wrong."""

    texts: list[list[int]]
    slip: int = 0
    asked: list[int] = field(default_factory=list)

    def propose(self, ids, count):
        self.asked.append(count)
        for text in self.texts:
            if text[: len(ids)] == ids:
                found = range(len(ids), min(len(ids) + count, len(text)))
                return [(text[at] + 1) % 61 if self.slip and at % self.slip == 0 else text[at] for at in found]
        return []


@dataclass
class Junk(DraftSource):
    value: object

    def propose(self, ids, count):
        return self.value


class Failing(DraftSource):
    def propose(self, ids, count):
        if len(ids) > len(PROMPT[0]) + 5:
            raise RuntimeError("the source is out of order")
        return []


SOURCES = {
    "none": None,
    "prompt_lookup": "prompt_lookup",
    "single tokens": {"name": "prompt_lookup", "max_ngram": 1, "min_ngram": 1},
    "constant": Constant(),
    "too many": TooMany(),
}


def run(model, ids=PROMPT, **kwargs):
    defaults = SPECULATIVE | {"return_dict_in_generate": True, "seed": 0, "max_new_tokens": 20, "draft_tokens": 4}
    return model.generate(ids, **defaults | kwargs)


@pytest.fixture(scope="module")
def wild():
    """Shallow and deep readouts hardly ever agree."""
    torch.manual_seed(1)
    model = RavenForCausalLM(tiny_config(mean_recurrence=8)).eval()
    with torch.no_grad():
        for parameter in model.transformer.core_block.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2)
    return model


@given(
    rows=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=12), min_size=1, max_size=3),
    depths=st.sampled_from([(2, 1, 0), (4, 1, 2), (4, 2, 0), (6, 1, 3), (8, 1, 4), (8, 2, 4), (8, 4, 0)]),
    draft_tokens=st.sampled_from([1, 2, 3, 5, 9, 40, "auto"]),
    source=st.sampled_from([*SOURCES, "oracle", "slipping oracle"]),
    seed=st.integers(-(2**62), 2**62),
    room=st.integers(1, 18),
    do_sample=st.booleans(),
    end=st.none() | st.integers(0, 60),
    more=st.sampled_from([{}, {"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2}]),
)
def test_law_5_whatever_the_source(wild, rows, depths, draft_tokens, source, seed, room, do_sample, end, more):
    num_steps, draft_depth, second = depths
    common = {"num_steps": num_steps, "seed": seed, "max_new_tokens": room, "do_sample": do_sample, "top_k": 0}
    common |= more | {"eos_token_id": end, "pad_token_id": 0}
    inputs = left_pad(rows)
    expected = wild.generate(**inputs, sampler="autoregressive", **common).tolist()
    oracle = Oracle(expected, slip=3 if source == "slipping oracle" else 0)
    settings = {"draft_depth": draft_depth, "second_draft_depth": second, "draft_tokens": draft_tokens}
    settings["draft_source"] = SOURCES.get(source, oracle)
    assert wild.generate(**inputs, **SPECULATIVE, **settings, **common).tolist() == expected


@pytest.mark.parametrize("draft_tokens", cases([2, 8, "auto"], keep=[8]))
def test_law_5_on_trained_models(huginn_mini, prompts, bundled, draft_tokens):
    common = {"num_steps": 8, "seed": 3, "max_new_tokens": 16, "do_sample": True}
    rows = left_pad(prompts)
    expected = huginn_mini.generate(**rows, sampler="autoregressive", **common).tolist()
    assert huginn_mini.generate(**rows, **SPECULATIVE, draft_tokens=draft_tokens, **common).tolist() == expected
    model, tokenizer = bundled
    texts = [p.prompt for p in islice(problems(21, held_out=True), 2)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    common = {"seed": 0, "num_steps": 16, "max_new_tokens": 24}
    expected = model.generate(**inputs, sampler="autoregressive", **common).tolist()
    got = model.generate(**inputs, **SPECULATIVE, draft_depth=1, draft_tokens=draft_tokens, **common)
    assert got.tolist() == expected


def test_law_5_for_every_family(family):
    common = {"num_steps": 4, "seed": 1, "max_new_tokens": 10}
    expected = family.generate(PROMPT, sampler="autoregressive", **common).tolist()
    slipping = Oracle(expected, slip=4)
    for source in ("prompt_lookup", slipping):
        got = run(family, draft_depth=1, draft_source=source, **common)
        assert got.sequences.tolist() == expected


@pytest.mark.parametrize("num_steps", [2, 8])
def test_right_guesses_go_below_a_core_pass_a_token(wild, num_steps):
    """What no wave with one new position a tick can do; several tokens are committed in one tick."""
    common = {"num_steps": num_steps, "max_new_tokens": 41}
    text = wild.generate(PROMPT, sampler="autoregressive", seed=0, **common).tolist()
    stats = run(wild, draft_tokens=8, draft_depth=1, draft_source=Oracle(text), **common).stats
    # The first wrong readout shows that the oracle is right more often.
    assert stats.core_passes_per_token < num_steps / 8 + 0.2
    made, right = stats.guesses["Oracle"]
    assert made == right > 30


def test_wrong_guesses_cost_no_core_passes(wild):
    """They take room in the wave for one tick each."""
    never = {"suppress_tokens": [60]}
    alone, guessing = (run(wild, draft_tokens=m, draft_source=Constant(60), **never).stats for m in (1, 6))
    assert guessing.core_passes <= alone.core_passes
    assert guessing.positions_refined > alone.positions_refined
    made, right = guessing.guesses["Constant"]
    assert made > 0 == right


def test_dropped_drafts_are_guessed_again(huginn_mini, prompts):
    stats = run(huginn_mini, torch.tensor([prompts[0]]), draft_source=None, num_steps=8, max_new_tokens=32).stats
    assert set(stats.guesses) <= {DROPPED}


def test_a_trace_has_every_commit_once(wild):
    common = {"num_steps": 4, "max_new_tokens": 21}
    text = wild.generate(PROMPT, sampler="autoregressive", seed=0, **common)[0, PROMPT.shape[1] :].tolist()
    oracle = Oracle([PROMPT[0].tolist() + text])
    output = run(wild, draft_source=oracle, draft_depth=1, return_trace=True, **common)
    trace = output.trace
    committed = [token for wave in trace.waves for token in wave.committed]
    assert trace.first_tokens + committed == text
    assert max(len(wave.committed) for wave in trace.waves) == 4
    for wave in trace.waves:
        assert wave.recurrences == sorted(wave.recurrences, reverse=True)
        assert len(wave.tokens) == wave.width == len(wave.predictions)


# --- what a call may bring along ---


def test_every_token_is_streamed_once(wild):
    common = {"num_steps": 4, "max_new_tokens": 21}
    text = wild.generate(PROMPT, sampler="autoregressive", seed=0, **common)
    seen, drafts = [], []
    spy = BaseStreamer()
    spy.put, spy.end = lambda value: seen.extend(value.flatten().tolist()), lambda: None
    spy.put_draft = lambda value: drafts.append(value.tolist())
    run(wild, streamer=spy, draft_source=Oracle(text.tolist()), draft_depth=1, **common)
    assert seen == text[0].tolist()
    assert max(map(len, drafts)) > 4


class EveryOther(LogitsProcessor):
    """Keeps a state: bans the token it saw chosen last at every other call."""

    def __init__(self):
        self.calls = []

    def __call__(self, input_ids, scores):
        self.calls.append(input_ids.shape[1])
        scores = scores.clone()
        if len(self.calls) % 2:
            scores[:, input_ids[0, -1]] = float("-inf")
        return scores


def test_a_processor_that_keeps_a_state_is_called_once_a_token(wild):
    common = {"num_steps": 4, "max_new_tokens": 16, "seed": 0}
    theirs, mine = EveryOther(), EveryOther()
    processors = {"logits_processor": LogitsProcessorList([theirs])}
    expected = wild.generate(PROMPT, sampler="autoregressive", **processors, **common).tolist()
    source = Oracle(expected)
    got = run(wild, draft_source=source, draft_depth=1, logits_processor=LogitsProcessorList([mine]), **common)
    assert got.sequences.tolist() == expected


def test_a_constraint_that_fails_on_the_text_itself_is_not_hidden(wild):
    """Several tokens of a tick may be final: an error about one of them is the call's, as in autoregression."""
    common = {"num_steps": 4, "max_new_tokens": 16, "seed": 0}
    text = wild.generate(PROMPT, sampler="autoregressive", **common)[0].tolist()

    def only_this_text(row, ids):
        if ids.tolist() != text[: len(ids)] or len(ids) == len(text) - 3:
            raise KeyError(len(ids))
        return list(range(61))

    settings = {"prefix_allowed_tokens_fn": only_this_text, "draft_source": Oracle([text]), "draft_depth": 1}
    with pytest.raises(KeyError, match=str(len(text) - 3)):
        run(wild, **settings, **common)


def test_a_stop_string_in_the_middle_of_a_cohort(bundled):
    model, tokenizer = bundled
    inputs = tokenizer(next(problems(13, held_out=True, kind="worked")).prompt, return_tensors="pt")
    common = {"seed": 0, "num_steps": 8, "max_new_tokens": 24}
    whole = model.generate(**inputs, sampler="autoregressive", **common).tolist()
    common |= {"stop_strings": [tokenizer.decode(whole[0][-9:-6])], "tokenizer": tokenizer}
    expected = model.generate(**inputs, sampler="autoregressive", **common).tolist()
    assert len(expected[0]) < len(whole[0])
    assert run(model, **inputs, ids=None, draft_source=Oracle(whole), **common).sequences.tolist() == expected


def test_guesses_stay_within_the_room(wild):
    """The last position predicts the last token: nothing enters after it."""
    text = wild.generate(PROMPT, sampler="autoregressive", seed=0, num_steps=4, max_new_tokens=60).tolist()
    oracle = Oracle(text)
    output = run(wild, num_steps=4, max_new_tokens=6, draft_tokens=50, draft_source=oracle, draft_depth=1)
    assert output.sequences.tolist() == [text[0][: PROMPT.shape[1] + 6]]
    assert 0 < max(oracle.asked) <= 6


# --- bad input ---


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ([3, 61], ValueError, "token 61, but the vocabulary has ids from 0 to 60"),
        ([-1], ValueError, "token -1"),
        ([1.0], TypeError, "every token must be an int"),
        (["3"], TypeError, "every token must be an int"),
        ([True], TypeError, "True among its tokens"),
        (None, TypeError, "return a list of token ids"),
        (7, TypeError, "return a list of token ids"),
    ],
)
def test_junk_from_a_source_is_refused_before_it_enters(tiny, value, error, message):
    with pytest.raises(error, match=message):
        run(tiny, draft_source=Junk(value))


@pytest.mark.parametrize("value", [torch.tensor([1, 2]), (3,), range(4), []])
def test_any_sequence_of_integers_will_do(tiny, value):
    expected = tiny.generate(PROMPT, sampler="autoregressive", seed=0, max_new_tokens=20)
    assert run(tiny, draft_source=Junk(value)).sequences.tolist() == expected.tolist()


def test_the_error_of_a_source_ends_the_call(tiny):
    with pytest.raises(RuntimeError, match="out of order"):
        run(tiny, draft_source=Failing())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"draft_tokens": 0}, ValueError, "draft_tokens=0 must be at least 1"),
        ({"draft_tokens": 2.0}, TypeError, "draft_tokens=2.0"),
        ({"draft_tokens": True}, TypeError, "draft_tokens=True"),
        ({"draft_tokens": "many"}, ValueError, "'auto' or a number"),
        ({"draft_source": "prompt_lokup"}, ValueError, "did you mean 'prompt_lookup'"),
        ({"draft_source": 3}, TypeError, "draft_source=3"),
        ({"draft_source": {"name": "prompt_lookup", "min_ngram": 9}}, ValueError, "max_ngram=8 must be at least 9"),
        ({"draft_source": {"name": "prompt_lookup", "ngram": 9}}, ValueError, "no parameter 'ngram'"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        SpeculativeWavefrontConfig(**settings)

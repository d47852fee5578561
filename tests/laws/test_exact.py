"""`exact=True`: a position's numbers do not depend on those beside it, so law 5 holds bit for bit in every dtype."""

import copy
from itertools import islice

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing import RavenForCausalLM, pack_linear_weights
from hf_diffusion_forcing.cache import RoundedExtents
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.generation.batch_invariant import BatchInvariant
from hf_diffusion_forcing.generation.rounding import Rounding
from hf_diffusion_forcing.packing import FBGEMM, packable_dtypes
from support import FAMILIES, HUGINN_MINI, left_pad, random_model, tiny_config
from support.batching import alone
from support.matrix import cases, crossed

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")
AUTOREGRESSIVE = {"sampler": "autoregressive", "exact": True}
LOSSLESS = {"sampler": "speculative_wavefront", "exact": True}
KEPT = {"return_dict_in_generate": True, "output_logits": True, "eos_token_id": None, "pad_token_id": 0}
ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4]]


def loaded(name, dtype):
    model = AutoModelForCausalLM.from_pretrained(FAMILIES[name], dtype=dtype).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    return model


def texts(model, inputs, **settings):
    """New ids and logits of each row: [rows][tokens], and [rows, tokens, vocabulary]."""
    output = model.generate(**inputs, **KEPT | settings)
    new = len(output.logits)
    return output.sequences[:, -new:].tolist(), torch.stack(output.logits, dim=1)


def assert_equal(got, expected):
    assert got[0] == expected[0]
    assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize(
    ("name", "dtype"),
    crossed(
        FAMILIES,
        DTYPES,
        keep=[
            *(("huginn", dtype) for dtype in DTYPES),
            ("olmo", torch.bfloat16),
            ("parcae", torch.float32),
            ("hrm_text", torch.float16),
        ],
    ),
)
def test_logits_are_equal_bit_for_bit_alone_in_a_wave_and_in_a_batch(name, dtype):
    model = loaded(name, dtype)
    steps = min(4, model.config.mean_recurrence)
    common = {"seed": [7, 8, 9], "max_new_tokens": 8, "num_steps": steps}
    for choice in ({}, {"do_sample": True, "top_k": 0}):
        batch = texts(model, left_pad(ROWS), **AUTOREGRESSIVE, **common, **choice)
        assert_equal(texts(model, left_pad(ROWS), **LOSSLESS, **common, **choice), batch)
        for row, ids in enumerate(ROWS):
            one = common | {"seed": common["seed"][row]} | choice
            expected = batch[0][row : row + 1], batch[1][row : row + 1]
            for settings in (LOSSLESS, LOSSLESS | {"draft_tokens": 3}) if choice else (AUTOREGRESSIVE, LOSSLESS):
                assert_equal(texts(model, {"input_ids": torch.tensor([ids])}, **settings, **one), expected)


@pytest.mark.parametrize("dtype", packable_dtypes())
@pytest.mark.parametrize("copies", [None, torch.float16])
def test_packed_weights(dtype, copies):
    if copies is not None and (dtype != torch.float32 or torch.backends.quantized.engine not in FBGEMM):
        pytest.skip("FBGEMM packs float32 weights to float16")
    model = AutoModelForCausalLM.from_pretrained(HUGINN_MINI, dtype=dtype).eval()
    pack_linear_weights(model, dtype=copies)
    expected = texts(model, left_pad(ROWS), **AUTOREGRESSIVE, seed=3, num_steps=8, max_new_tokens=9)
    assert_equal(texts(model, left_pad(ROWS), **LOSSLESS, seed=3, num_steps=8, max_new_tokens=9), expected)


@given(
    rows=st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=70), min_size=1, max_size=3),
    chunk=st.sampled_from([None, 1, 3, 16, 70]),
    depths=st.sampled_from([(1, 0), (1, 2), (2, 4), (3, 0)]),
    draft_tokens=st.sampled_from([1, 2, 5]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**40),
)
@example(  # the first row reads nothing in the first two chunks
    rows=[[1], [2, 3, 4]], chunk=1, depths=(1, 0), draft_tokens=1, dtype=torch.float32, seed=0
)
def test_over_prompts_chunks_and_batches(rows, chunk, depths, draft_tokens, dtype, seed):
    """Neither the other rows, nor the chunks of a prompt, nor drafts change a bit of the first row."""
    model = copy.deepcopy(random_model()).to(dtype)
    common = {"max_new_tokens": 5, "do_sample": True, "top_k": 0, "seed": seed}
    expected = texts(model, left_pad(rows[:1]), **AUTOREGRESSIVE, **common)
    draft_depth, second = depths
    drafting = {"draft_depth": draft_depth, "second_draft_depth": second, "draft_tokens": draft_tokens}
    for settings in (AUTOREGRESSIVE, LOSSLESS | drafting):
        ids, logits = texts(model, left_pad(rows), **settings, **common, prefill_chunk_size=chunk)
        assert_equal((ids[:1], logits[:1]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_at_both_ends_of_every_width(huginn_mini, dtype):
    """The verbs themselves: a position alone, and first and last among as many as a width holds, and one more."""
    model = copy.deepcopy(huginn_mini).to(dtype)
    exact = BatchInvariant(model, CPU)

    def logits(count, place):
        """Of row `place` among `count` rows of one position each; the others have other tokens and seeds."""
        cache = RoundedExtents(model.new_cache(4, "none"))
        seats = torch.arange(count)[None]
        own = seats == place
        ids, seeds = torch.where(own, 65, 70 + seats % 20), torch.where(own, 5, 100 + seats)
        positions = torch.where(own, 0, seats % 3)
        at = cache.place_rows(positions, seats, [1] * count, [3] * count)
        with torch.no_grad():
            e = exact.embed(ids, at)
            s = exact.initialize_state(e, positions, seeds)
            for depth in range(4):
                s = exact.recur(s, e, at, depth)
            return exact.decode(s, at)[0, place], exact.decode(s, at, logits_to_keep=torch.tensor([place]))[0, 0]

    expected, again = logits(1, 0)
    assert torch.equal(expected, again)
    for count in (2, 3, 4, 5, 8, 9, 16, 17, 33, 64, 65):
        for place in (0, count - 1):
            for got in logits(count, place):
                assert torch.equal(got, expected), (count, place)


@pytest.mark.parametrize("dtype", cases(DTYPES, keep=[torch.float32]))
@pytest.mark.parametrize(("kind", "do_sample"), crossed(["worked", "mental"], [False, True], keep=[("mental", True)]))
def test_law_5_on_the_bundled_checkpoint(bundled, dtype, kind, do_sample):
    model, tokenizer = bundled
    model = copy.deepcopy(model).to(dtype)
    prompts = [p.prompt for p in islice(problems(11, held_out=True, kind=kind), 4)]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    common = {"seed": 1, "num_steps": 8, "max_new_tokens": 24, "do_sample": do_sample}
    expected = model.generate(**inputs, **AUTOREGRESSIVE, **common).tolist()
    assert model.generate(**inputs, **LOSSLESS, **common).tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_law_5_over_a_thousand_texts(bundled, dtype):
    """Greedy and sampled, in batches that end at different lengths."""
    model, tokenizer = bundled
    model = copy.deepcopy(model).to(dtype)
    prompts = [p.prompt for p in islice(problems(12, held_out=True), 512)]
    compared = 0
    for first in range(0, len(prompts), 64):
        inputs = tokenizer(prompts[first : first + 64], return_tensors="pt", padding=True)
        for do_sample, draft_depth in ((False, 1), (True, 2)):
            common = {"num_steps": 8, "seed": first, "do_sample": do_sample, "max_new_tokens": 64}
            expected = model.generate(**inputs, **AUTOREGRESSIVE, **common).tolist()
            assert model.generate(**inputs, **LOSSLESS, draft_depth=draft_depth, **common).tolist() == expected
            compared += len(expected)
    assert compared >= 1000


# --- the rest of the package ---


@pytest.mark.parametrize("sampler", [AUTOREGRESSIVE, LOSSLESS])
def test_requests_that_come_and_go(huginn_mini, prompts, sampler):
    """Requests are read beside others that tick, and some begin alike."""
    model = copy.deepcopy(huginn_mini).to(torch.bfloat16)
    settings = sampler | {"num_steps": 4, "max_new_tokens": 8, "seed": 4, "do_sample": True}
    short = [prompt[: 30 + 7 * row] for row, prompt in enumerate(prompts)]
    asked = [*short, short[0] + short[1][:3]]
    results = model.generate_batch(asked, **settings)
    got = [output.generated_tokens for output in results.values()]
    assert got == [alone(model, prompt, **settings | {"seed": 4 + row}) for row, prompt in enumerate(asked)]


def test_a_conversation_continues_from_either_samplers_cache(huginn_mini, prompts):
    model = copy.deepcopy(huginn_mini).to(torch.bfloat16)
    common = {"num_steps": 4, "seed": 0, "max_new_tokens": 6, "return_dict_in_generate": True}
    turns = []
    for first_by, then_by in ((AUTOREGRESSIVE, LOSSLESS), (LOSSLESS, AUTOREGRESSIVE), (AUTOREGRESSIVE,) * 2):
        first = model.generate(torch.tensor([prompts[0]]), **first_by, **common)
        turn = torch.cat((first.sequences, torch.tensor([prompts[1]])), dim=1)
        turns.append(model.generate(turn, **then_by, cache=first.cache, **common).sequences.tolist())
    assert turns[0] == turns[1] == turns[2]


def test_a_prompt_that_is_read_in_both_directions():
    model = loaded("hrm_text", torch.bfloat16)
    inputs = left_pad(ROWS)
    common = {"seed": [7, 8, 9], "max_new_tokens": 10}
    batch = texts(model, inputs | {"token_type_ids": inputs["attention_mask"]}, **AUTOREGRESSIVE, **common)
    for row, ids in enumerate(ROWS):
        one = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.ones(1, len(ids), dtype=torch.long)}
        got = texts(model, one, **LOSSLESS, **common | {"seed": common["seed"][row]})
        assert_equal(got, (batch[0][row : row + 1], batch[1][row : row + 1]))


def test_the_cache_and_the_statistics_are_the_samplers_own(huginn_mini, prompts):
    common = {"num_steps": 8, "seed": 0, "max_new_tokens": 10, "return_dict_in_generate": True}
    ids = torch.tensor([prompts[0]])
    exact, plain = (huginn_mini.generate(ids, **LOSSLESS | {"exact": each}, **common) for each in (True, False))
    assert exact.cache.nbytes == plain.cache.nbytes
    assert exact.stats.positions_refined == plain.stats.positions_refined


# --- what cannot be kept ---


class Mixing(RavenForCausalLM):
    """Its states depend on their neighbours."""

    def recur(self, s, e, at, depth):
        return super().recur(s, e, at, depth) + s.mean(dim=1, keepdim=True)


def test_a_model_that_cannot_keep_it_says_so_once(warnings):
    torch.manual_seed(0)
    model = Mixing(tiny_config()).eval()
    for _ in range(2):
        model.generate(torch.tensor([[3, 1, 4]]), **LOSSLESS, seed=0, max_new_tokens=3)
    said = [record.message for record in warnings.records if "exact=True cannot be kept" in record.message]
    assert len(said) == len(set(said)) and said
    assert "float32 on cpu" in said[0]


def test_a_sound_model_warns_of_nothing(tiny, warnings):
    tiny.generate(torch.tensor([[3, 1, 4]]), **LOSSLESS, seed=0, max_new_tokens=3)
    assert not [record for record in warnings.records if "exact" in record.message]


def test_widths_are_compared_once(tiny):
    rounding = Rounding.of(tiny, CPU)
    assert rounding is Rounding.of(tiny, CPU)
    assert rounding.width(tiny, 1) == rounding.least
    for count in (3, 7, 65, 130):
        width = rounding.width(tiny, count)
        assert count <= width < count + 16 and rounding.widths[count] == width
    assert Rounding.of(copy.deepcopy(tiny).to(torch.bfloat16), CPU) is not rounding


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (LOSSLESS | {"exact": "yes"}, TypeError, "exact='yes' must be True or False"),
        ({"sampler": "diffusion_forcing", "exact": True}, ValueError, "exact=True is not a setting of"),
        ({"sampler": "adaptive", "exact": True}, ValueError, "'autoregressive' or 'speculative_wavefront'"),
        ({"sampler": False, "exact": True}, ValueError, "exact=True is not a setting of plain decoding"),
        (AUTOREGRESSIVE | {"guidance_scale": 2.0}, ValueError, "guidance_scale=2.0 is not supported .* exact=True"),
        (AUTOREGRESSIVE | {"return_trace": True}, ValueError, "return_trace=True is not possible"),
    ],
)
def test_bad_input(tiny, settings, error, message):
    with pytest.raises(error, match=message):
        tiny.generate(torch.tensor([[3, 1, 4]]), max_new_tokens=3, **settings)


def test_hooks_that_look_at_rows_are_refused(tiny):
    handle = tiny.transformer.core_block[0].register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(ValueError, match="exact=True is not possible for a batch of 2 rows while forward hooks"):
        tiny.generate(torch.tensor([[3, 1], [1, 4]]), **LOSSLESS, max_new_tokens=3, pad_token_id=0)
    alone(tiny, [3, 1], **LOSSLESS, max_new_tokens=3)
    handle.remove()

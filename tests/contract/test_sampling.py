"""Sampling and processors: the same noise at the same position, whatever the sampler."""

from itertools import pairwise
from unittest import mock

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TopKLogitsWarper, WatermarkingConfig

from hf_diffusion_forcing import compat
from support import left_pad, new_tokens, random_model

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])


class EvenAfterOdd(LogitsProcessor):
    """A custom processor that reads the prefix: an even token after an odd one, an odd one after an even one."""

    def __call__(self, input_ids, scores):
        tokens = torch.arange(scores.shape[-1])
        return scores.masked_fill(tokens % 2 == input_ids[:, -1:] % 2, float("-inf"))


def exact(tiny, **kwargs):
    """Diffusion forcing that refines one position at a time, fully: law 2."""
    return tiny.generate(
        PROMPT,
        sampler="diffusion_forcing",
        wavefront=1,
        inner_recurrence=tiny.config.mean_recurrence,
        max_new_tokens=16,
        **kwargs,
    )


def autoregressive(tiny, **kwargs):
    return tiny.generate(PROMPT, sampler="autoregressive", kv_sharing="last", max_new_tokens=16, **kwargs)


@pytest.fixture(scope="module")
def plain():
    """The text without a processor."""
    return autoregressive(random_model(), seed=4).tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.5, "top_k": 10},
        {"do_sample": True, "top_p": 0.8},
        {"do_sample": True, "min_p": 0.02},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"suppress_tokens": [3, 5, 7]},
        {"min_new_tokens": 12, "eos_token_id": 7},
        {"bad_words_ids": [[3], [5, 7]]},
    ],
)
def test_processors_see_each_positions_own_prefix(tiny, settings):
    assert exact(tiny, seed=4, **settings).tolist() == autoregressive(tiny, seed=4, **settings).tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"encoder_repetition_penalty": 1.2},
        {"encoder_no_repeat_ngram_size": 2},
        {"prefix_allowed_tokens_fn": lambda row, ids: [10 + row, 20 + row, 30 + row]},
        {"do_sample": True, "temperature": 0.7, "top_k": 5},
    ],
)
def test_processors_in_a_padded_batch(tiny, settings):
    """Some processors hold a tensor per row or ask for the row's number: autoregression with them, row for row."""
    inputs = left_pad([[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]])
    common = {"kv_sharing": "last", "max_new_tokens": 10, "seed": 4} | settings
    depth = tiny.config.mean_recurrence
    forcing = tiny.generate(**inputs, sampler="diffusion_forcing", wavefront=1, inner_recurrence=depth, **common)
    assert forcing.tolist() == tiny.generate(**inputs, sampler="autoregressive", **common).tolist()


def test_seeds(tiny):
    draw = {"do_sample": True, "top_k": 0}
    one = exact(tiny, seed=1, **draw).tolist()
    assert exact(tiny, seed=1, **draw).tolist() == one
    assert exact(tiny, seed=2, **draw).tolist() != one
    for _ in range(2):
        torch.manual_seed(11)
        again = exact(tiny, **draw).tolist()
        torch.manual_seed(11)
        assert exact(tiny, **draw).tolist() == again


def test_returned_sequences_differ(tiny):
    ids = exact(tiny, seed=1, do_sample=True, top_k=0, num_return_sequences=3)
    rows = new_tokens(ids, PROMPT.shape[1])
    assert len({tuple(row) for row in rows}) == 3
    assert exact(tiny, seed=2, do_sample=True, top_k=0).tolist()[0] == ids[1].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "typical_p": 0.7},
        {"do_sample": True, "epsilon_cutoff": 0.01},
        {"do_sample": True, "eta_cutoff": 0.01},
        {"do_sample": True, "top_h": 0.5},
        {"do_sample": True, "renormalize_logits": True, "remove_invalid_values": True},
        {"forced_eos_token_id": 7},
        {"begin_suppress_tokens": list(range(60))},
        {"sequence_bias": [[[5], 4.0], [[5, 6], 6.0]]},
        {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": 7},
        {"min_length": 18, "eos_token_id": 7},
        {"encoder_repetition_penalty": 1.5},
        {"watermarking_config": WatermarkingConfig(bias=4.0, seeding_scheme="selfhash")},
        {"logits_processor": LogitsProcessorList([EvenAfterOdd()])},
        {"temperature": 0.5, "do_sample": True, "repetition_penalty": 1.2, "top_k": 7, "no_repeat_ngram_size": 2},
    ],
    ids=lambda settings: next(iter(settings)) + str(len(settings)),
)
def test_every_processor_equals_autoregression(tiny, plain, settings):
    expected = autoregressive(tiny, seed=4, **settings).tolist()
    assert exact(tiny, seed=4, **settings).tolist() == expected
    assert expected != plain


def test_a_forced_first_token(tiny):
    common = {"forced_bos_token_id": 9, "bos_token_id": 1, "max_new_tokens": 5, "seed": 0}
    ids = tiny.generate(torch.tensor([[1]]), sampler="diffusion_forcing", wavefront=1, inner_recurrence=6, **common)
    assert ids[0, 1] == 9
    assert (
        ids.tolist()
        == tiny.generate(torch.tensor([[1]]), sampler="autoregressive", kv_sharing="last", **common).tolist()
    )


def test_the_first_token_has_the_distribution_of_its_scores(tiny):
    """Chi-square over 2,000 seeds, as rows of one batch."""
    rows = 2000
    output = tiny.generate(
        PROMPT.repeat(rows, 1),
        sampler="diffusion_forcing",
        state_scale=0.0,
        do_sample=True,
        temperature=0.8,
        top_k=12,
        max_new_tokens=1,
        seed=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    probabilities = output.scores[0][0].softmax(-1)
    kept = probabilities > 0
    counts = torch.bincount(output.sequences[:, -1], minlength=len(probabilities)).float()
    assert kept.sum() == 12 and not counts[~kept].any()
    expected = rows * probabilities[kept]
    statistic = ((counts[kept] - expected) ** 2 / expected).sum()
    assert statistic < 31.26  # chi-square with 11 degrees of freedom, p = 0.001


def test_second_tokens_have_the_distribution_of_their_scores(tiny):
    """The noise of a second token is independent of the first's: chi-square over the rows with one first token."""
    rows = 4000
    output = tiny.generate(
        PROMPT.repeat(rows, 1),
        sampler="diffusion_forcing",
        wavefront=1,
        inner_recurrence=6,
        state_scale=0.0,
        do_sample=True,
        top_k=4,
        max_new_tokens=2,
        seed=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    first, second = output.sequences[:, -2], output.sequences[:, -1]
    chosen = first == first.mode().values
    probabilities = output.scores[1][chosen][0].softmax(-1)
    kept = probabilities > 0
    counts = torch.bincount(second[chosen], minlength=len(probabilities)).float()
    expected = chosen.sum() * probabilities[kept]
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 16.27  # 3 degrees of freedom, p = 0.001


def test_a_prefix_function_is_strict_where_the_prefix_is_final(tiny):
    """On a draft's prefix it may raise, and is then left out; what is committed always obeys."""

    def counting(row, ids):
        last = int(ids[-1])
        if len(ids) > PROMPT.shape[1] and not 10 <= last < 20:
            raise KeyError(last)  # no text of this grammar leads here
        return [10 + (last + 1) % 10] if last >= 10 else [10, 13]

    ids = tiny.generate(
        PROMPT, sampler="diffusion_forcing", wavefront=8, prefix_allowed_tokens_fn=counting, max_new_tokens=12
    )
    new = ids[0, PROMPT.shape[1] :].tolist()
    assert all(after == 10 + (before + 1) % 10 for before, after in pairwise(new))
    with pytest.raises(ValueError, match="empty list"):
        tiny.generate(
            PROMPT, sampler="diffusion_forcing", max_new_tokens=4, prefix_allowed_tokens_fn=lambda row, ids: []
        )


def test_a_prefix_function_gets_the_number_transformers_gives_it(tiny):
    """With several texts of a prompt that is the prompt's number since transformers 5.24, the row's before."""
    asked = {}

    def counting(sampler):
        def allowed(number, ids):
            asked.setdefault(sampler, set()).add(number)
            last = int(ids[-1])
            if len(ids) > PROMPT.shape[1] and not 10 <= last < 20:
                raise KeyError(last)
            # Texts part, so that rows are of different lengths when they are asked about.
            return [10 + (last + 1) % 10, 10 + (last + 3) % 10] if last >= 10 else [10, 13]

        return allowed

    common = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 16, "seed": 5}
    for settings in (
        {"sampler": "autoregressive"},
        {"sampler": "diffusion_forcing", "wavefront": 8, "inner_recurrence": 2, "exit_threshold": 0.3},
        {"sampler": "speculative_wavefront", "draft_depth": 1},
    ):
        sampler = settings["sampler"]
        ids = tiny.generate(PROMPT.repeat(2, 1), prefix_allowed_tokens_fn=counting(sampler), **settings, **common)
        for row in ids[:, PROMPT.shape[1] :].tolist():
            assert all((after - before) % 10 in (1, 3) for before, after in pairwise(row))
    assert asked["diffusion_forcing"] == asked["speculative_wavefront"] == asked["autoregressive"]
    assert len(asked["autoregressive"]) == (2 if compat.RENAMED else 6)


def test_prefix_free_processors_are_called_once_a_wave(tiny):
    calls = {"free": 0, "bound": 0}

    class Counting(LogitsProcessor):
        reads_only_prefix = True

        def __call__(self, input_ids, scores):
            calls["bound"] += 1
            return scores

    top_k = TopKLogitsWarper(5)
    original = TopKLogitsWarper.__call__

    def counted(self, input_ids, scores):
        calls["free"] += 1
        return original(self, input_ids, scores)

    with mock.patch.object(TopKLogitsWarper, "__call__", counted):
        output = tiny.generate(
            PROMPT,
            sampler="diffusion_forcing",
            wavefront=8,
            max_new_tokens=16,
            logits_processor=LogitsProcessorList([top_k, Counting()]),
            return_dict_in_generate=True,
        )
    stats = output.stats
    assert calls["free"] == stats.ticks + 1
    assert calls["bound"] == stats.positions_refined * stats.ticks // stats.core_passes + 1

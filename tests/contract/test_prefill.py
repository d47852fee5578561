"""The prompt's own pass: at full depth, in chunks, or until it has converged."""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import pytest
import torch

from hf_diffusion_forcing import ExitCriterion
from hf_diffusion_forcing.evaluation.measure import accuracy, solve
from hf_diffusion_forcing.evaluation.problems import problems
from support import left_pad, new_tokens
from support.matrix import cases, crossed

ADAPTIVE = {"sampler": "diffusion_forcing", "adaptive_prefill": True, "inner_recurrence": 1}


def prefill(model, ids, **settings):
    output = model.generate(
        ids, **{"max_new_tokens": 1, "seed": 0} | settings, return_dict_in_generate=True, output_logits=True
    )
    return output.stats.prefill_core_passes, output.logits[0], output.cache


@pytest.mark.parametrize("kv_sharing", ["last", "none", 3])
def test_a_criterion_that_never_fires_is_the_full_pass(tiny, kv_sharing):
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    common = {"sampler": "diffusion_forcing", "kv_sharing": kv_sharing, "inner_recurrence": 2}
    passes, logits, cache = prefill(tiny, ids, **common)
    same_passes, same_logits, same_cache = prefill(tiny, ids, **common, adaptive_prefill=True, exit_threshold=0.0)
    assert passes == same_passes == tiny.config.mean_recurrence
    torch.testing.assert_close(same_logits, logits, atol=1e-6, rtol=0)
    for mine, theirs in zip(same_cache.keys, cache.keys, strict=True):
        torch.testing.assert_close(mine[:, :, :, :6], theirs[:, :, :, :6], atol=1e-6, rtol=0)


def test_a_criterion_that_always_fires_is_one_recurrence(tiny):
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    passes, logits, _ = prefill(tiny, ids, **ADAPTIVE, exit_threshold=1e9)
    assert passes == 1
    torch.testing.assert_close(logits, prefill(tiny, ids, **ADAPTIVE, prefill_steps=1)[1], atol=1e-6, rtol=0)


def test_prompts_stop_where_they_have_converged_and_answers_stay(bundled):
    model, tokenizer = bundled
    chosen = list(islice(problems(21, held_out=True, kind="mental"), 16))
    full = solve(model, tokenizer, chosen, sampler="diffusion_forcing")
    early = solve(model, tokenizer, chosen, **ADAPTIVE)
    assert accuracy(chosen, early) >= accuracy(chosen, full) - 1 / 16
    ids = tokenizer(chosen[0].prompt, return_tensors="pt").input_ids
    passes, *_ = prefill(model, ids, **ADAPTIVE)
    assert 1 < passes < 20


def test_a_position_that_waits_for_its_left_has_not_converged(tiny):
    """Only the longest converged prefix stops: this criterion holds everywhere but at the first position."""

    @dataclass
    class AllButTheFirst(ExitCriterion):
        name: ClassVar[str] = "all but the first"
        widths: ClassVar[list] = []

        def __call__(self, refinement):
            self.widths.append(refinement.positions.shape[1])
            return (refinement.positions != 0) | (refinement.steps >= 3)

    passes, *_ = prefill(tiny, torch.tensor([[3, 1, 4, 1, 5]]), **ADAPTIVE, exit_criterion=AllButTheFirst())
    assert passes == 4
    assert AllButTheFirst.widths[:4] == [5, 5, 5, 5]


def test_it_narrows_from_the_left(bundled):
    """What has stopped is not refined again."""
    model, tokenizer = bundled
    ids = tokenizer(next(problems(22, held_out=True, kind="worked")).prompt, return_tensors="pt").input_ids
    widths, recur = [], model.recur
    try:
        model.recur = lambda s, *rest: widths.append(s.shape[1]) or recur(s, *rest)
        prefill(model, ids, **ADAPTIVE)
    finally:
        del model.recur
    assert widths[0] == ids.shape[1]
    assert widths == sorted(widths, reverse=True)
    assert sum(widths) < 12 * ids.shape[1]


def test_a_prompt_without_padding_needs_no_mask(bundled):
    """Rows alike stand at consecutive positions in every pass; a mask over a long prompt costs more than it saves."""
    model, tokenizer = bundled
    ids = tokenizer(next(problems(22, held_out=True, kind="worked")).prompt, return_tensors="pt").input_ids
    starts, recur = [], model.recur
    try:
        model.recur = lambda s, e, at, depth: starts.append(at.start) or recur(s, e, at, depth)
        prefill(model, ids, **ADAPTIVE)
    finally:
        del model.recur
    assert starts[0] == 0
    assert None not in starts and starts[-1] > 0


@pytest.mark.parametrize("criterion", ["kl", "token_stability", {"name": "fixed", "steps": 3}])
def test_criteria_that_read_logits_or_count(tiny, criterion):
    rows = left_pad([[3, 1, 4, 1, 5], [9, 2]])
    settings = ADAPTIVE | {"exit_criterion": criterion, "seed": [1, 2], "max_new_tokens": 5}
    together = new_tokens(tiny.generate(**rows, **settings), 5)
    for row, prompt in enumerate(([3, 1, 4, 1, 5], [9, 2])):
        alone = tiny.generate(torch.tensor([prompt]), **settings | {"seed": 1 + row})
        assert together[row] == new_tokens(alone, len(prompt))[0]


def test_chunks_and_an_automatic_wavefront(bundled):
    model, tokenizer = bundled
    problem = next(problems(23, held_out=True, kind="worked"))
    inputs = tokenizer(problem.prompt, return_tensors="pt")
    for more in ({"prefill_chunk_size": 20}, {"wavefront": "auto"}, {"wavefront": "auto", "prefill_chunk_size": 50}):
        settings = {"sampler": "diffusion_forcing", "adaptive_prefill": True, "seed": 0} | more
        ids = model.generate(**inputs, **settings)
        assert problem.is_solved_by(tokenizer.decode(ids[0], skip_special_tokens=True))


@pytest.mark.parametrize(
    ("sampler", "kv_sharing"),
    crossed(
        ["adaptive", "diffusion_forcing"],
        ["last", "none", 2],
        keep=[("adaptive", "none"), ("adaptive", 2), ("diffusion_forcing", "last")],
    ),
)
def test_law_3_for_prompts_in_chunks(tiny, sampler, kv_sharing):
    """With shared keys and values a chunk sees the last recurrence of those before it: where it begins matters."""
    prompts = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [9, 2, 7, 1, 8, 2], [6], [5, 3, 5, 8, 9, 7, 9, 3, 2]]
    settings = {"sampler": sampler, "kv_sharing": kv_sharing, "prefill_chunk_size": 4, "max_new_tokens": 8}
    inputs = left_pad(prompts)
    together = new_tokens(tiny.generate(**inputs, **settings, seed=[1, 2, 3, 4]), 11)
    for row, prompt in enumerate(prompts):
        alone = tiny.generate(torch.tensor([prompt]), **settings, seed=1 + row)
        assert together[row] == new_tokens(alone, len(prompt))[0]


@pytest.mark.parametrize("kv_sharing", cases(["last", "none", 3], keep=["none"]))
def test_ragged_prompts_that_stop_apart_keep_what_they_would_alone(bundled, kv_sharing):
    """What has stopped and what is padding is left out of a pass: keys and values are those of the row alone."""
    model, tokenizer = bundled
    chosen = islice(problems(25, held_out=True), 4)
    prompts = [tokenizer(problem.prompt).input_ids for problem in chosen]
    settings = ADAPTIVE | {"kv_sharing": kv_sharing, "max_new_tokens": 1, "return_dict_in_generate": True}
    together = model.generate(**left_pad(prompts, tokenizer.pad_token_id), **settings, seed=[1, 2, 3, 4])
    passes = []
    for row, prompt in enumerate(prompts):
        alone = model.generate(torch.tensor([prompt]), **settings, seed=1 + row)
        passes.append(alone.stats.prefill_core_passes)
        cache, own = together.cache, alone.cache
        for tensors, theirs in ((cache.keys, own.keys), (cache.values, own.values)):
            for mine, single in zip(tensors, theirs, strict=True):
                span = slice(0, len(prompt))
                torch.testing.assert_close(mine[:, row, :, span], single[:, 0, :, span], atol=1e-4, rtol=1e-4)
    assert len(set(map(len, prompts))) > 1 and (kv_sharing == 3 or len(set(passes)) > 1)
    assert together.stats.prefill_core_passes == max(passes)

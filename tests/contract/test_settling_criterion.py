"""The exit criterion "settling": its equation from changes, its memory, and what a trace says of it."""

import math

import pytest
import torch
from test_exit_criteria import refinement

from hf_diffusion_forcing import SettlingCriterion, exit_criterion
from hf_diffusion_forcing.evaluation.inspection import inspect_recurrences
from hf_diffusion_forcing.evaluation.settling import contraction, is_settled
from hf_diffusion_forcing.hooks.settling import (
    CANDIDATES,
    WINDOW,
    contraction_factor,
    remaining_sway,
    rounding_floor,
    sway,
)
from hf_diffusion_forcing.visualization.report import Report
from support import left_pad

NAN, INF = math.nan, math.inf
ROWS = [[3, 1, 4], [1, 5, 9, 2, 6, 5]]


def sequence(factor, count, logits, dtype=torch.float32, recurrences=1):
    """Ticks of one position whose state changes by `factor` times the change before it, and its logits."""
    last, states = None, [torch.zeros(1, 1, 4)]
    for tick in range(count):
        states.append(states[-1] + torch.tensor([3.0, 1.0, 0.0, 2.0]) * factor**tick)
        now = refinement(
            last,
            before=states[-2].to(dtype),
            states=states[-1].to(dtype),
            logits=logits[tick][None, None].to(dtype),
            fresh=torch.tensor([[tick == 0]]),
            steps=torch.tensor([[tick * recurrences]]),
            recurrences=recurrences,
            predictions=torch.tensor([[0]]),
        )
        yield now
        last = now


@pytest.mark.parametrize("recurrences", [1, 4])
def test_the_values_are_the_estimate_over_all_depths(recurrences):
    """A tick of several recurrences is one step; the window grows to its full length and moves on."""
    logits = torch.randn(9, 30, generator=torch.manual_seed(0)) / torch.arange(1, 10)[:, None] ** 2 + torch.arange(30)
    criterion = SettlingCriterion(1.0)
    ticks = list(sequence(0.6, 9, logits, recurrences=recurrences))
    verdicts = torch.stack([criterion(tick)[0] for tick in sequence(0.6, 9, logits, recurrences=recurrences)])
    values, last = [], None
    for tick in ticks:
        tick.memory = {} if last is None else last.remembered
        values.append(criterion.distance(tick)[0])
        last = tick
    changes = torch.stack([(tick.states - tick.before).norm(dim=-1) / tick.states.norm(dim=-1) for tick in ticks])[:, 0]
    factors = contraction(changes, rounding_floor(torch.float32))
    sways = torch.stack([torch.tensor([INF]), *(sway(logits[k], logits[k - 1], CANDIDATES)[None] for k in range(1, 9))])
    torch.testing.assert_close(torch.stack(values), remaining_sway(sways, factors))
    assert torch.equal(torch.stack(values) < 1, is_settled(sways, factors))
    assert not verdicts[0].any() and verdicts[-1].all()


def test_sway_is_that_of_the_whole_vocabulary_where_a_close_rival_moves():
    before = torch.randn(50, 400, generator=torch.manual_seed(1))
    logits = before + 0.1 * torch.randn(50, 400, generator=torch.manual_seed(2))
    best = logits.argmax(-1, keepdim=True)
    lead, lead_before = logits.gather(-1, best) - logits, before.gather(-1, best) - before
    share = ((lead - lead_before).abs() / lead).scatter(-1, best, 0.0)
    found = sway(logits, before, CANDIDATES)
    torch.testing.assert_close(sway(logits, before), share.amax(-1))
    assert (found <= share.amax(-1) + 1e-6).all()
    near = logits.topk(CANDIDATES).indices
    torch.testing.assert_close(found, share.gather(-1, near).amax(-1))
    assert (found / share.amax(-1)).median() == 1  # of most positions, the rival that matters is near


def test_ties_masked_tokens_and_tiny_vocabularies():
    tie = torch.tensor([2.0, 2.0, 1.0])
    assert sway(tie, tie).item() == INF
    masked = torch.tensor([1.0, -INF, 3.0])
    assert sway(masked, masked).item() == 0
    assert sway(torch.tensor([1.0, 2.0, 3.0]), masked).item() == INF  # the rival came from nowhere
    for broken in (NAN, INF, -INF):
        assert math.isnan(sway(torch.full((3,), broken), tie).item())
    assert sway(torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.0])).item() == 1.0


def test_a_factor_is_measured_on_the_current_token_only():
    """After a change of the input token the window starts again."""
    change, at_rest = torch.tensor([0.1]), 1e-6
    assert contraction_factor(change, torch.tensor([0.4]), 2, torch.tensor([NAN]), at_rest).item() == pytest.approx(0.5)
    logits = torch.tensor([3.0, 1.0, 0.0]).repeat(8, 1)
    history, last = [0.5, 0.001, 0.4, 0.1], None
    for tick, (moved, steps) in enumerate(zip(history, [0, 1, 0, 1], strict=True)):
        last = refinement(
            last,
            before=torch.tensor([[[1.0, 0.0, 0.0]]]) - torch.tensor([[[moved, 0.0, 0.0]]]),
            states=torch.tensor([[[1.0, 0.0, 0.0]]]),
            logits=logits[tick][None, None],
            fresh=torch.tensor([[tick == 0]]),
            steps=torch.tensor([[steps]]),
            recurrences=1,
            predictions=torch.tensor([[0]]),
        )
        SettlingCriterion()(last)
    # 0.1 / 0.4, not (0.1 / 0.5) ** (1 / 3).
    assert last.remembered["settling.factor"].item() == pytest.approx(0.25, rel=1e-3)


def test_rest_in_bfloat16_is_settled():
    """States that reach rounding within a tick or two have a factor all the same."""
    logits = torch.tensor([3.0, 1.0, 0.0]).repeat(6, 1)
    verdicts = [SettlingCriterion()(tick).item() for tick in sequence(0.01, 6, logits, torch.bfloat16)]
    assert verdicts == [False] + [True] * 5


def test_what_it_remembers_is_bounded():
    logits = torch.randn(1, 2, 1000).bfloat16()
    now = refinement(logits=logits, states=torch.ones(1, 2, 8), before=torch.zeros(1, 2, 8))
    SettlingCriterion()(now)
    kept = now.remembered.pop("settling.logits")
    assert kept is logits  # not a copy
    assert sum(each.numel() for each in now.remembered.values()) == 2 * (WINDOW + 2)


def test_it_meets_the_samplers_as_it_meets_inspect(huginn_mini, prompts):
    """A token given at depth k: the adaptive sampler exits where inspect says so."""
    ids = torch.tensor([prompts[0]])
    call = {"exit_criterion": "settling", "exit_threshold": 0.3}
    output = huginn_mini.generate(
        ids, sampler="adaptive", max_new_tokens=2, seed=0, return_trace=True, return_dict_in_generate=True, **call
    )
    insight = inspect_recurrences(huginn_mini, output.sequences[:, :-1], seed=0, **call)
    assert output.trace.tokens(0)[1].recurrences == insight.exit_depths[-1]
    assert 2 <= insight.exit_depths[-1] < huginn_mini.config.mean_recurrence


@pytest.mark.parametrize("call", [{"sampler": "adaptive"}, {"sampler": "diffusion_forcing", "inner_recurrence": 2}])
def test_every_sampler_ends_with_it_and_a_row_is_alone(tiny, call):
    call |= {"exit_criterion": "settling", "adaptive_prefill": True, "max_new_tokens": 8, "num_steps": 6}
    together = tiny.generate(**left_pad(ROWS), **call, pad_token_id=0, seed=[3, 4])
    for row, ids in enumerate(ROWS):
        alone = tiny.generate(torch.tensor([ids]), **call, seed=3 + row)
        assert together[row, -8:].tolist() == alone[0, -8:].tolist()


# --- what traces say ---


TRACED = {"return_trace": True, "return_dict_in_generate": True, "max_new_tokens": 24, "seed": 0}


def test_a_trace_says_which_tokens_were_settled(huginn_mini, prompts):
    ids = torch.tensor([prompts[0]])
    loose = {"exit_threshold": 0.5, "inner_recurrence": 1}
    output = huginn_mini.generate(ids, sampler="diffusion_forcing", **loose, **TRACED)
    tokens = output.trace.tokens(0)
    assert tokens[0].settled is None  # the prompt's own pass
    settled = [token.settled for token in tokens[1:]]
    assert {True, False} == set(settled)
    assert output.stats.settled == [settled.count(True)] == output.trace.settled
    # The criterion itself at 1 is the same estimate, without processors.
    other = huginn_mini.generate(
        ids, sampler="diffusion_forcing", exit_criterion="settling", exit_threshold=1.0, inner_recurrence=1, **TRACED
    )
    for wave in other.trace.waves:
        assert wave.settled == [value is not None and value < 1 for value in wave.exit_values]
        assert all(wave.settled[: len(wave.committed)]) or wave.recurrences[0] >= other.trace.budget


def test_what_is_not_known_is_not_said(huginn_mini, prompts):
    ids = torch.tensor([prompts[0]])
    for call in (
        {"sampler": "adaptive"},
        {"sampler": "speculative_wavefront"},
        {"sampler": "diffusion_forcing", "do_sample": True},
    ):
        output = huginn_mini.generate(ids, **call, **TRACED | {"max_new_tokens": 4, "num_steps": 6})
        assert output.stats.settled is None
        assert {token.settled for token in output.trace.tokens(0)} == {None}
    few = {"sampler": "diffusion_forcing", "num_steps": 6} | TRACED | {"max_new_tokens": 3}
    plain = huginn_mini.generate(ids, **few | {"return_trace": False})
    assert plain.stats.settled is None
    suppressed = huginn_mini.generate(ids, suppress_tokens=[plain.sequences[0, len(prompts[0]) + 1].item()], **few)
    assert suppressed.trace.tokens(0)[1].settled is False  # not the model's likeliest token


def test_the_report_says_it_in_words(bundled):
    model, tokenizer = bundled
    inputs = tokenizer("Q: Start at 7 + 3 * 3. Last digit?\nA:", return_tensors="pt")
    loose = {"exit_threshold": 0.5, "inner_recurrence": 1}
    short = TRACED | {"max_new_tokens": 12}
    output = model.generate(**inputs, sampler="diffusion_forcing", **loose, **short)
    count, known = output.stats.settled[0], len(output.trace.tokens(0)) - 1
    page = Report("model", [], tokenizer, inputs.input_ids[0].tolist(), output.trace).html()
    assert f"{count} of {known} tokens were settled" in page
    assert page.count("; settled: further") == count and page.count("; not settled: further") == known - count
    assert page.count('<span class="token unsettled"') + page.count('special unsettled"') == known - count
    exact = model.generate(**inputs, sampler="speculative_wavefront", **short)
    page = Report("model", [], tokenizer, inputs.input_ids[0].tolist(), exact.trace).html()
    assert "settled:" not in page and "tokens were settled" not in page


def test_spelling():
    assert exit_criterion("settling", 0.1) == SettlingCriterion(0.1)
    with pytest.raises(ValueError, match="threshold=-1"):
        exit_criterion("settling", -1)

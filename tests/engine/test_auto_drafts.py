"""`draft_depth="auto"` and the lossless preset auto: what is chosen, when it is chosen again; no text changes."""

from itertools import cycle

import pytest
import torch

from hf_diffusion_forcing import SpeculativeWavefrontConfig
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.generation import speculative_wavefront
from hf_diffusion_forcing.generation.auto_drafts import AutoDrafts, Drafts
from hf_diffusion_forcing.generation.cost_curve import WIDTHS, CostCurve
from hf_diffusion_forcing.generation.draft_choice import Guessing, lossless_seconds, lost_ticks
from hf_diffusion_forcing.generation.output import SamplerStats
from support import left_pad

FLAT = CostCurve(core=(1.0,) * 7, ends=(0.5,) * 7)
"""A wide pass costs what a narrow one does."""
STEEP = CostCurve(core=tuple(map(float, WIDTHS)), ends=(0.5,) * 7)
"""Every position costs the same."""
BOTH = CostCurve(core=(1.0, 1.0, 1.1, 1.3, 1.8, 3.0, 5.5), ends=(1.0, 1.0, 1.1, 1.3, 1.8, 3.0, 5.5))
DEPTHS = (1, 2, 4, 8)
SELDOM = dict.fromkeys(DEPTHS, 0.01)
MOSTLY = dict.fromkeys(DEPTHS, 0.999)


def auto_of(curve, shares, guessing=Guessing(), **settings) -> AutoDrafts:
    config = SpeculativeWavefrontConfig(draft_depth="auto", num_steps=16, **settings).resolve(16)
    return AutoDrafts(curve, 1, config, shares, guessing, SamplerStats())


def test_the_depth_follows_agreement_and_cost():
    single = {"draft_tokens": 1, "second_draft_depth": 0}
    assert auto_of(FLAT, MOSTLY, **single).draft_depth == 1
    assert auto_of(FLAT, {1: 0.01, 2: 0.01, 4: 0.999, 8: 0.999}, **single).draft_depth == 4
    assert auto_of(STEEP, SELDOM, **single).draft_depth == 8, "the fewer ticks, the fewer readouts"


def test_a_second_draft_makes_shallow_first_drafts_cheaper():
    assert lost_ticks({2: 0.8}, 16, 2, 0) == pytest.approx(0.2 * 7)
    assert lost_ticks({2: 0.8, 8: 0.9}, 16, 2, 8) == pytest.approx(0.1 * 7 + 0.1 * 3)
    shares = {1: 0.8, 2: 0.85, 4: 0.999, 8: 0.999}
    assert auto_of(FLAT, shares, second_draft_depth=0).draft_depth == 4
    assert auto_of(FLAT, shares, second_draft_depth=4).draft_depth < 4


def test_guesses_and_depth_are_chosen_together():
    right, wrong = Guessing(0.9, 0.95), Guessing(0.9, 0.05)
    assert auto_of(FLAT, MOSTLY, right, draft_tokens="auto").wanted.draft_tokens == 8
    assert auto_of(STEEP, MOSTLY, wrong, draft_tokens="auto").wanted.draft_tokens == 1
    # With guesses, a deep first draft too adds several tokens a tick.
    shares = {1: 0.8, 2: 0.9, 4: 0.99, 8: 0.99}
    alone, guessed = (auto_of(BOTH, shares, right, draft_tokens=tokens).draft_depth for tokens in (1, "auto"))
    assert (alone, guessed) == (1, 4)


@pytest.mark.parametrize("curve", [FLAT, STEEP, BOTH])
@pytest.mark.parametrize("shares", [SELDOM, MOSTLY, {1: 0.5, 2: 0.7, 4: 0.9, 8: 0.95}])
@pytest.mark.parametrize("guessing", [Guessing(), Guessing(1.0, 0.9), Guessing(0.5, 0.5), Guessing(1.0, 0.0)])
def test_no_choice_is_estimated_to_be_slower_than_the_preset_lossless(curve, shares, guessing):
    auto = auto_of(curve, shares, guessing, draft_tokens="auto")
    preset = lossless_seconds(curve, [], 16, 1, lost_ticks(shares, 16, 1, 4))
    (decision,) = auto.stats.decisions
    assert decision.seconds_per_token["draft_depth=1, draft_tokens=1"] == pytest.approx(preset)
    assert decision.seconds_per_token[str(auto.wanted)] <= preset
    for chances in ([0.1] * 7, [0.9] * 7, [0.5]):
        count = auto.guesses(chances)
        own = [lossless_seconds(curve, chances[:n], 16, auto.draft_depth, auto.lost) for n in (0, count)]
        assert own[1] <= own[0]


def test_a_decision_says_what_and_why():
    auto = auto_of(FLAT, MOSTLY, Guessing(0.9, 0.95), draft_tokens="auto")
    (decision,) = auto.stats.decisions
    assert (decision.tick, decision.sampler) == (0, "speculative_wavefront")
    assert decision.settings == {"draft_depth": 1, "draft_tokens": 8}
    assert decision.measured == {"acceptance": 0.999, "guess_coverage": 0.9, "guess_accuracy": 0.95}
    seconds = decision.seconds_per_token
    assert set(seconds) == {"draft_depth=1, draft_tokens=8", "draft_depth=1, draft_tokens=1", "autoregressive"}
    assert seconds["autoregressive"] == 16.5 and min(seconds.values()) == seconds["draft_depth=1, draft_tokens=8"]


def run_ticks(auto, count, right):
    """Ticks that take what the curve says, each with one draft of every kind; `right` of them in 10."""
    for tick in range(count):
        depth = auto.draft_depth
        for each in {depth, auto.config.second_depth(depth)} - {0}:
            made, were = auto.stats.proposals.get(each, (0, 0))
            auto.stats.proposals[each] = made + 1, were + (tick % 10 < right)
        auto.stats.ticks += 1
        auto.add(auto.curve.seconds_per_tick(16 / depth, depth, ends=2), 1, 16 // depth, 2, 1)
        if auto.wanted.draft_depth != auto.draft_depth:
            auto.take()


def test_another_depth_when_drafts_lately_fare_otherwise():
    auto = auto_of(FLAT, MOSTLY, draft_tokens="auto")
    assert auto.draft_depth == 1
    run_ticks(auto, 300, right=3)
    assert len(auto.stats.decisions) >= 2 and auto.draft_depth > 1
    first, second, *_ = auto.stats.decisions
    assert second.tick <= 80 and second.measured["acceptance"] < first.measured["acceptance"]
    assert {"tick_seconds", "tokens_per_tick"} <= second.measured.keys()
    run_ticks(auto, 600, right=10)
    assert auto.draft_depth == 1, auto.stats.decisions


def test_a_choice_that_was_right_stays():
    auto = auto_of(BOTH, MOSTLY, draft_tokens="auto")
    run_ticks(auto, 300, right=10)
    assert len(auto.stats.decisions) == 1


class Restless(AutoDrafts):
    """Wants another depth every few ticks."""

    def __init__(self, *args):
        super().__init__(*args)
        self.turns, self.count = cycle([2, 1, 4, 1, 2]), 0
        self.wanted = Drafts(4, 3)
        self.take()

    def add(self, *facts):
        self.count += 1
        if self.count % 3 == 0:
            self.wanted = Drafts(next(self.turns), 3)


@pytest.mark.parametrize("draft_tokens", [1, 3, "auto"])
@pytest.mark.parametrize("do_sample", [False, True])
def test_changes_in_mid_text_change_no_text(huginn_mini, prompts, monkeypatch, draft_tokens, do_sample):
    monkeypatch.setattr(speculative_wavefront, "AutoDrafts", Restless)
    rows = left_pad(prompts[:3])
    common = {"seed": 3, "max_new_tokens": 32, "num_steps": 8, "do_sample": do_sample, "pad_token_id": 0}
    expected = huginn_mini.generate(**rows, sampler="autoregressive", **common).tolist()
    settings = {"sampler_preset": "auto", "lossless": True, "draft_tokens": draft_tokens}
    output = huginn_mini.generate(**rows, **settings, **common, return_dict_in_generate=True)
    assert output.sequences.tolist() == expected
    assert len(output.stats.decisions) > 2, "depths changed"
    alone = {"input_ids": torch.tensor(prompts[:1])}
    expected = huginn_mini.generate(**alone, sampler="autoregressive", **common).tolist()
    output = huginn_mini.generate(**alone, **settings, **common, return_dict_in_generate=True)
    assert output.sequences.tolist() == expected
    assert {1, 2, 4} <= output.stats.proposals.keys()


def test_the_preset_auto_writes_autoregressions_text(bundled):
    model, tokenizer = bundled
    tokenizer.padding_side = "left"
    chosen = [next(problems(seed, held_out=True, kind="worked")).prompt for seed in (1, 2, 3)]
    inputs = tokenizer(chosen, return_tensors="pt", padding=True)
    for more in ({}, {"do_sample": True, "top_k": 0}):
        common = {"seed": 0, "max_new_tokens": 40, "num_steps": 16} | more
        expected = model.generate(**inputs, sampler="autoregressive", **common)
        common |= {"sampler_preset": "auto", "lossless": True, "return_dict_in_generate": True}
        output = model.generate(**inputs, **common)
        assert output.sequences.tolist() == expected.tolist()
        first = output.stats.decisions[0]
        assert first.sampler == "speculative_wavefront" and 0 < first.measured["acceptance"] < 1
        assert output.stats.draft_depth == output.stats.decisions[-1].settings["draft_depth"]


def test_guesses_of_the_prompt_count(bundled, monkeypatch):
    """A prompt that repeats itself: prompt lookup is right there, and its guesses enter from the first tick on."""
    monkeypatch.setattr(speculative_wavefront, "cost_curve", lambda *_: FLAT)
    model, tokenizer = bundled
    text = next(problems(1, held_out=True, kind="worked")).prompt
    inputs = tokenizer(text * 3, return_tensors="pt")
    common = {"sampler_preset": "auto", "lossless": True, "seed": 0, "max_new_tokens": 8}
    (known, *_), (unknown, *_) = (
        model.generate(**inputs, **common, return_dict_in_generate=True, **more).stats.decisions
        for more in ({}, {"draft_source": None})
    )
    assert known.measured["guess_coverage"] > 0.5 and unknown.measured["guess_coverage"] == 0
    assert known.settings["draft_tokens"] > unknown.settings["draft_tokens"] == 1


def test_many_right_drafts_do_not_end_the_learning():
    auto = auto_of(FLAT, MOSTLY)
    stats, depth = auto.stats, auto.draft_depth
    stats.proposals[depth] = (0, 0)
    for number in range(200):
        made = stats.proposals[depth][0] + 1000
        stats.proposals[depth] = (made, made if number < 199 else made - 500)
        auto._learn()
        auto._start_window()
    assert auto.shares[depth] < 0.6

"""`wavefront="auto"`: the choice when the prompt is read, and the choices after it, by what ticks turn out to take."""

from collections import Counter
from itertools import cycle

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from hf_diffusion_forcing import DiffusionForcingConfig, SpeculativeWavefrontConfig
from hf_diffusion_forcing.evaluation.problems import problems
from hf_diffusion_forcing.generation import diffusion_forcing
from hf_diffusion_forcing.generation.auto_wave import ALONE, AutoWave, Way
from hf_diffusion_forcing.generation.cost_curve import WIDTHS, CostCurve
from hf_diffusion_forcing.generation.output import SamplerStats
from hf_diffusion_forcing.generation.pace import Correction, Pace, Tick
from hf_diffusion_forcing.generation.wave_choice import (
    fronts_seconds,
    steady_wave,
    wave_seconds,
    waves,
)
from support import left_pad
from support.heads import with_start_head

BYTES = CostCurve(core=(1.0,) * 7, ends=(1.0,) * 7)
"""Reading weights decides: a wide pass costs what a narrow one does."""
ARITHMETIC = CostCurve(core=tuple(map(float, WIDTHS)), ends=tuple(map(float, WIDTHS)))
"""Arithmetic decides: every position costs the same."""
BOTH = CostCurve(core=(1.0, 1.0, 1.1, 1.3, 1.8, 3.0, 5.5), ends=(1.0, 1.0, 1.1, 1.3, 1.8, 3.0, 5.5))
"""A CPU in between."""
CURVES = {"bytes": BYTES, "arithmetic": ARITHMETIC, "both": BOTH}
BUDGET = 32


def auto_of(curve, recurrences, inner=None, rows=1, allows_fronts=True) -> AutoWave:
    return AutoWave(curve, rows, recurrences, BUDGET, inner, allows_fronts, False, SamplerStats())


class Machine:
    """Ticks as the model describes them, with a constant for what the curve leaves out."""

    def __init__(self, curve: CostCurve, recurrences: float, overhead: float = 0.0):
        self.curve, self.recurrences, self.overhead = curve, recurrences, overhead
        self.alone = max(ALONE * recurrences, 1.0)
        self.owed = self.seconds = self.tokens = 0.0

    def seconds_per_token(self, way: Way) -> float:
        correction = Correction(seconds=self.overhead)
        if way is None:
            return fronts_seconds(self.curve, self.alone, 1, correction)
        return wave_seconds(self.curve, self.recurrences, *way, correction)

    @property
    def least(self) -> float:
        ways = [*waves(self.recurrences, BUDGET), None]
        return min(map(self.seconds_per_token, ways))

    def tick(self, auto: AutoWave) -> None:
        if auto.way is None:
            ticks, positions, inner = self.alone, 1.0, 1
        else:
            ticks, positions = steady_wave(max(self.recurrences / auto.way[1], 1), auto.way[0])
            inner = auto.way[1]
        self.owed += 1 / ticks
        committed, self.owed = int(self.owed), self.owed - int(self.owed)
        seconds = self.curve.seconds_per_tick(positions, inner) + self.overhead
        if auto.way is None and not committed:
            seconds -= self.curve.seconds_per_tick(1, 0)
        self.seconds, self.tokens = self.seconds + seconds, self.tokens + committed
        auto.stats.ticks += 1
        # By Little's law, with a position that takes as many ticks as it needs recurrences.
        needed = self.alone if auto.way is None else max(self.recurrences / inner, 1)
        auto.add(seconds, 1, positions, inner, committed, (needed - 1) / ticks)


def test_reading_asks_for_wide_waves_and_arithmetic_for_one_position_at_a_time():
    assert auto_of(BYTES, 8).way == (16, 1)
    assert auto_of(ARITHMETIC, 8).way is None
    assert auto_of(ARITHMETIC, 8, inner=1).way is None
    assert auto_of(ARITHMETIC, 8, inner=4).way == (1, 4)
    assert auto_of(ARITHMETIC, 8, allows_fronts=False).way == (1, 4)


def test_a_decision_says_what_and_why():
    auto = auto_of(ARITHMETIC, 8)
    (decision,) = auto.stats.decisions
    assert (decision.tick, decision.sampler, decision.settings) == (0, "adaptive", {})
    assert decision.measured == {"recurrences": 8}
    seconds = decision.seconds_per_token
    assert seconds["adaptive"] == pytest.approx(0.8 * 8 + 1) and min(seconds.values()) == seconds["adaptive"]
    assert set(seconds) == {"adaptive", "wavefront=1, inner_recurrence=4"}
    assert auto.stats.to_dict()["decisions"][0]["sampler"] == "adaptive"


@pytest.mark.parametrize("overhead", [0.0, 0.3, 3.0])
@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("in_prompt", [1, 4, 16])
@pytest.mark.parametrize("in_text", [1, 3, 5, 12, 30])
def test_whatever_the_prompt_promised_the_text_decides(name, in_prompt, in_text, overhead):
    machine, auto = Machine(CURVES[name], in_text, overhead), auto_of(CURVES[name], in_prompt)
    for _ in range(400):
        machine.tick(auto)
    assert machine.seconds_per_token(auto.way) <= 1.06 * machine.least, auto.stats.decisions
    assert len(auto.stats.decisions) <= 5, "it settles"


def test_a_choice_that_was_right_stays():
    for name in CURVES:
        machine, auto = Machine(CURVES[name], 5), auto_of(CURVES[name], 6)
        for _ in range(300):
            machine.tick(auto)
        assert len(auto.stats.decisions) == 1


def test_a_slower_text_is_seen_within_some_tens_of_ticks():
    machine, auto = Machine(BOTH, 20), auto_of(BOTH, 2)
    narrow = auto.way
    for _ in range(100):
        machine.tick(auto)
    first, second, *_ = auto.stats.decisions
    assert second.tick <= 80 and second.measured["recurrences"] > 3 * first.measured["recurrences"]
    assert machine.seconds_per_token(auto.way) < machine.seconds_per_token(narrow) / 1.5


def test_what_the_curve_leaves_out_is_read_from_the_ticks():
    pace = Pace()
    for width in (3, 4, 5, 6, 3, 4, 5, 6):
        pace.ticks.append(Tick(0.5 + 2.0 * width, float(width), 1, width))
    pace.ticks.append(Tick(900.0, 4.0, 1, 4))  # the machine was busy
    found = pace.correction()
    assert found(10.0) == pytest.approx(20.5, rel=0.2) and found.slope > 1.5
    pace.ticks = [Tick(3.0, 2.0, 1, 2)] * 8  # all alike: a constant
    assert pace.correction() == Correction(1.0, 1.0)
    pace.ticks = [Tick(1.0, 2.0, 1, 2)] * 8  # faster than the curve says
    assert pace.correction() == Correction(0.5, 0.0)


def test_less_than_a_token_of_each_row_counts_as_what_it_is():
    pace = Pace()
    pace.ticks = [Tick(1.0, 1.0, 0.0, 1.0)] * 63 + [Tick(1.0, 1.0, 2 / 8, 1.0)]
    assert pace.stay == 1 + 64 / 0.25
    auto = auto_of(BOTH, 8, rows=8)
    auto.is_filling, seconds = False, []
    auto._choose = lambda *_: seconds.append(auto.pace.stay) or auto.way
    for tick in range(64):
        auto.add(1.0, 8, 8, 1, 2 if tick == 63 else 0, 8)
    assert seconds == [1 + 64 / 0.25]


def test_the_last_tick_before_the_budget_is_estimated_by_its_own_recurrences():
    auto = auto_of(ARITHMETIC, 8, inner=4)
    auto.is_filling = False
    auto.add(1.0, 1, 2, 4, 0, 2)
    auto.add(1.0, 1, 2, 1, 0, 2)
    assert [tick.estimate for tick in auto.pace.ticks] == [2 + 4 * 2, 2 + 1 * 2]


def test_a_second_choice_of_a_call_is_recorded_beside_the_first():
    stats = auto_of(BYTES, 8).stats
    AutoWave(ARITHMETIC, 1, 8, BUDGET, None, True, False, stats)
    assert [each.sampler for each in stats.decisions] == ["diffusion_forcing", "adaptive"]


def test_nothing_is_chosen_by_times_that_compiled_ticks_do_not_take():
    with pytest.raises(ValueError, match=r"wavefront='auto' is not possible with compile=True.* Pass wavefront="):
        DiffusionForcingConfig.from_preset("auto", compile=True)
    with pytest.raises(ValueError, match=r"draft_depth='auto' is not possible with compile=True.* Pass draft_depth="):
        SpeculativeWavefrontConfig(draft_depth="auto", compile=True)
    with pytest.raises(ValueError, match=r"draft_tokens='auto' is not possible with compile=True.* Pass draft_tokens="):
        SpeculativeWavefrontConfig(draft_tokens="auto", compile=True)
    assert DiffusionForcingConfig(compile=True).wavefront == 32


@pytest.fixture
def arithmetic(monkeypatch):
    curve = CostCurve(core=ARITHMETIC.core, ends=(0.01,) * 7)
    monkeypatch.setattr(diffusion_forcing, "cost_curve", lambda *_: curve)


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("more", [{}, {"exit_criterion": "kl"}, {"kv_sharing": "none"}, {"learned_start": True}])
def test_one_position_at_a_time_is_what_adaptive_writes(huginn_mini, prompts, arithmetic, more, do_sample):
    inputs, model = left_pad(prompts[:3]), with_start_head(huginn_mini)
    common = {"seed": 3, "max_new_tokens": 7, "num_steps": 12, "do_sample": do_sample, "pad_token_id": 0} | more
    common["return_dict_in_generate"] = True
    output = model.generate(**inputs, sampler="diffusion_forcing", wavefront="auto", **common)
    adaptive = model.generate(**inputs, sampler="adaptive", **common)
    assert [each.sampler for each in output.stats.decisions] == ["adaptive"]
    assert output.sequences.tolist() == adaptive.sequences.tolist()
    assert (output.stats.wavefront, output.stats.inner_recurrence) == (1, 1)
    for name in ("ticks", "core_passes", "positions_refined"):
        assert getattr(output.stats, name) == getattr(adaptive.stats, name)


class Restless(AutoWave):
    """Chooses something else every few ticks."""

    def __init__(self, *args):
        super().__init__(*args)
        self.turns = cycle([None, (8, 1), (1, 4), (3, 2), None, (2, 8), (12, 1)])
        self.count, self.way = 0, next(self.turns)

    def add(self, *facts):
        self.count += 1
        if self.count % 3 == 0:
            self.way = next(self.turns)
        return self.count % 3 == 0


@pytest.mark.parametrize(
    ("kv_sharing", "learned"), [("last", False), ("none", False), (2, False), ("last", True), ("none", True)]
)
def test_changes_in_mid_text_change_no_text_that_converges(bundled, monkeypatch, kv_sharing, learned):
    model, tokenizer = bundled
    chosen = [next(problems(seed, held_out=True, kind="worked")).prompt for seed in (1, 2, 3)]
    tokenizer.padding_side = "left"
    inputs = tokenizer(chosen, return_tensors="pt", padding=True)
    common = {"seed": 0, "max_new_tokens": 60, "num_steps": 16, "kv_sharing": kv_sharing, "learned_start": learned}
    expected = model.generate(**inputs, sampler_preset="fast", **common)
    monkeypatch.setattr(diffusion_forcing, "AutoWave", Restless)
    traced = {"return_dict_in_generate": True, "return_trace": True}
    output = model.generate(**inputs, sampler_preset="auto", **common, **traced)
    assert output.sequences.tolist() == expected.tolist()
    widths = Counter(wave.width for wave in output.trace.waves)
    assert max(widths) > 2 and widths[1] > 10


def test_no_front_exceeds_its_budget_whatever_changes(tiny, monkeypatch):
    monkeypatch.setattr(diffusion_forcing, "AutoWave", Restless)
    common = {"wavefront": "auto", "exit_threshold": 0.0, "num_steps": 11, "seed": 1, "max_new_tokens": 30}
    output = tiny.generate(
        **left_pad([[3, 1, 4], [9, 2, 6, 5, 3]]),
        sampler="diffusion_forcing",
        **common,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        return_trace=True,
    )
    assert output.stats.tokens_committed == [30, 30]
    spent = [wave.recurrences[0] for wave in output.trace.waves]
    assert max(spent) <= 11


class Timed(AutoWave):
    """Ticks take what the curve says, on whatever machine the test runs."""

    def add(self, seconds, rows, positions, recurrences, tokens, unsettled):
        seconds = self.curve.seconds_per_tick(positions / rows, recurrences)
        return super().add(seconds, rows, positions, recurrences, tokens, unsettled)


class Unforeseen(LogitsProcessor):
    """Forces tokens that follow no pattern: the states of such a text settle slowly."""

    def __call__(self, input_ids, scores):
        forced = (input_ids.shape[1] * 7919 + 13) % 300 + 100
        return torch.full_like(scores, -torch.inf).index_fill(-1, torch.tensor([forced]), 0.0)


def test_a_text_that_settles_more_slowly_than_its_prompt_gets_a_wider_wave(bundled, monkeypatch):
    model, tokenizer = bundled
    monkeypatch.setattr(diffusion_forcing, "cost_curve", lambda *_: BOTH)
    monkeypatch.setattr(diffusion_forcing, "AutoWave", Timed)
    inputs = tokenizer(next(problems(1, held_out=True, kind="worked")).prompt, return_tensors="pt")
    common = {"sampler_preset": "auto", "seed": 0, "max_new_tokens": 150, "return_dict_in_generate": True}
    usual = model.generate(**inputs, **common).stats
    assert len(usual.decisions) == 1, usual.decisions
    odd = {"logits_processor": LogitsProcessorList([Unforeseen()]), "eos_token_id": None}
    slow = model.generate(**inputs, **common, **odd).stats
    first, *_, last = slow.decisions
    assert first == usual.decisions[0]
    assert last.tick >= 32 and last.measured["recurrences"] > 1.3 * first.measured["recurrences"]
    assert last.settings["wavefront"] > first.settings["wavefront"], slow.decisions
    assert (slow.wavefront, slow.inner_recurrence) == tuple(last.settings.values())

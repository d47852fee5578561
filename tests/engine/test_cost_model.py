"""`wavefront="auto"`: the cost model chooses what its curve says; the wave decodes as if it had been given."""

from dataclasses import replace

import pytest
import torch

from hf_diffusion_forcing.generation.call import Call
from hf_diffusion_forcing.generation.cost_curve import WIDTHS, CostCurve, cost_curve
from hf_diffusion_forcing.generation.in_place import RowsInPlace
from hf_diffusion_forcing.generation.prompt import Prompt
from hf_diffusion_forcing.generation.row import Row
from hf_diffusion_forcing.generation.wave_choice import PromptDepth, steady_wave, wave_seconds, waves
from support import left_pad

FLAT = CostCurve(core=(1.0,) * 7, ends=(1.0,) * 7)
"""Streaming weights decides: a wide pass costs what a narrow one does."""
STEEP = CostCurve(core=tuple(map(float, WIDTHS)), ends=tuple(map(float, WIDTHS)))
"""Arithmetic decides: every position costs the same."""


def test_interpolation():
    assert STEEP.seconds_per_tick(16, 1) == 32
    assert STEEP.seconds_per_tick(3, 2) == 9
    assert STEEP.seconds_per_tick(100, 1) == 200
    assert FLAT.seconds_per_tick(5.5, 4) == 5
    assert FLAT.seconds_per_tick(0.5, 4) == 5 and STEEP.seconds_per_tick(0.5, 1) == 1
    assert CostCurve((1.0, 4.0) * 3 + (1.0,), (1.0,) * 7).seconds_per_tick(0.25, 1) == 1.25


def choose_wave(curve, recurrences, budget, inner_recurrence=None):
    return min(waves(recurrences, budget, inner_recurrence), key=lambda wave: wave_seconds(curve, recurrences, *wave))


def test_flat_costs_ask_for_wide_waves_and_steep_ones_for_deep_ticks():
    assert choose_wave(FLAT, recurrences=8, budget=32) == (16, 1)
    assert choose_wave(STEEP, recurrences=8, budget=32) == (1, 4)
    assert choose_wave(STEEP, recurrences=8, budget=3)[1] == 2
    assert choose_wave(STEEP, recurrences=8, budget=32, inner_recurrence=1) == (1, 1)
    assert choose_wave(FLAT, recurrences=8, budget=32, inner_recurrence=4) == (4, 4)
    assert choose_wave(FLAT, recurrences=1000, budget=2000)[0] == 128


def test_a_steady_wave_keeps_its_bounds():
    for stay in (1, 3, 8):
        for wavefront in (1, 4, 64):
            ticks, positions = steady_wave(stay, wavefront)
            assert ticks >= max(1, stay / wavefront) and 1 <= positions <= min(wavefront, max(1, 1.2 * stay))


class End:
    """A prompt of which some positions are watched."""

    def __init__(self, *watched):
        self.watch = watched

    def watched(self):
        return torch.tensor(self.watch)


def test_the_prompts_depth_is_the_last_recurrence_that_moved():
    depth = PromptDepth()
    still, far = torch.ones(1, 3, 4), torch.ones(1, 3, 4) * 2
    for after, before in ((far, still), (far, still), (still, still)):
        depth(after, before, None, End(1, 2))
    assert depth.recurrences == 3


def test_the_end_of_every_row_is_watched():
    call = Call(None, None)
    rows = [Row(call, i, ids, 0, i, 100) for i, ids in enumerate(([1, 2, 3, 4, 5], [6, 7]))]
    prompt = Prompt.of(rows, [(0, 5), (0, 2)], 0, torch.device("cpu"))
    assert prompt.watched().tolist() == [3, 4, 5, 6] and prompt.lasts.tolist() == [4, 6]
    assert prompt.watched(1).tolist() == [4, 6]


def test_the_curve_is_measured_once(tiny):
    curve = cost_curve(tiny, 2, tiny.device)
    assert len(curve.core) == len(curve.ends) == len(WIDTHS) and min(*curve.core, *curve.ends) > 0
    assert cost_curve(tiny, 2, tiny.device) is curve and cost_curve(tiny, 1, tiny.device) is not curve
    # A call with forward hooks wraps the model anew.
    assert cost_curve(RowsInPlace(tiny, 2), 2, tiny.device) is curve


@pytest.mark.parametrize("given", [{}, {"inner_recurrence": 2}])
def test_auto_is_the_wave_it_chose(tiny, given):
    inputs = left_pad([[3, 1, 4, 1, 5], [9, 2]])
    common = {"sampler": "diffusion_forcing", "seed": 1, "max_new_tokens": 12, "return_dict_in_generate": True}
    auto = tiny.generate(**inputs, wavefront="auto", **given, **common)
    chosen = {"wavefront": auto.stats.wavefront, "inner_recurrence": auto.stats.inner_recurrence}
    assert given.items() <= chosen.items()
    again = tiny.generate(**inputs, **chosen, **common)
    assert again.sequences.tolist() == auto.sequences.tolist()
    assert len(auto.stats.decisions) == 1 and again.stats == replace(auto.stats, decisions=[])

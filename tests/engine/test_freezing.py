"""The freeze decision, a pure function: one case a line."""

import pytest

from hf_diffusion_forcing.generation.freezing import frozen_prefix

A, B, C, D = 10, 11, 12, 13
CASES = {
    # name: tokens, predictions, has_converged, steps, recurrences, budget, how many freeze
    "nothing has converged": ([A, B], [B, C], [0, 0], [0, 0], 1, 32, 0),
    "the front has": ([A, B], [B, C], [1, 0], [1, 1], 1, 32, 1),
    "all have": ([A, B, C], [B, C, D], [1, 1, 1], [4, 4, 4], 4, 32, 3),
    "a gap holds back what is behind it": ([A, B, C], [B, C, D], [1, 0, 1], [1, 1, 1], 1, 32, 1),
    "behind an unsettled front nothing freezes": ([A, B], [B, C], [0, 1], [1, 1], 1, 32, 0),
    "a wrong draft waits though it has converged": ([A, D, C], [B, C, D], [1, 1, 1], [9, 9, 9], 1, 32, 1),
    "a wrong draft further on": ([A, B, D], [B, C, D], [1, 1, 1], [9, 9, 9], 1, 32, 2),
    "the front's own token is never wrong": ([D], [A], [1], [0], 1, 32, 1),
    "the front at its budget": ([A, B], [B, C], [0, 0], [28, 0], 4, 32, 1),
    "one tick is left": ([A, B], [B, C], [0, 0], [24, 0], 4, 32, 0),
    "a budget that ticks do not divide": ([A], [B], [0], [3], 3, 10, 0),
    "its last whole tick": ([A], [B], [0], [6], 3, 10, 1),
    "a budget of one tick": ([A], [B], [0], [0], 4, 4, 1),
    "a budget below a tick": ([A], [B], [0], [0], 4, 1, 1),
    "exhausted positions freeze in a row": ([A, B], [B, C], [0, 0], [8, 8], 4, 8, 2),
    "an exhausted wrong draft waits": ([A, D], [B, C], [1, 0], [8, 8], 4, 8, 1),
    "an exhausted position behind one that goes on": ([A, B], [B, C], [0, 0], [0, 8], 4, 16, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_freezing(name):
    *arguments, expected = CASES[name]
    assert frozen_prefix(*arguments) == expected

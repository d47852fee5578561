"""The wave's bookkeeping: what moves where when positions freeze and new ones enter."""

import torch

from hf_diffusion_forcing.generation.wavefront import Wavefront


def wave(fronts, tokens):
    return Wavefront(fronts, tokens, torch.device("cpu"))


def test_nothing_frozen_one_new():
    w = wave([5], [[10]])
    w.advance(0, frozen=0, predictions=[11], width=2, recurrences=4)
    assert (w.fronts, w.tokens, w.steps, w.origins) == ([5], [[10, 11]], [[4, 0]], [[0, -1]])
    assert w.tensors()[1].tolist() == [[5, 6]]
    assert (w.start, w.extent, w.width, w.first_fresh) == (5, 7, 2, 1)


def test_a_frozen_prefix_leaves_and_the_rest_moves_up():
    w = wave([5], [[10, 11, 12]])
    w.advance(0, frozen=2, predictions=[11, 12, 13], width=2, recurrences=1)
    assert (w.fronts, w.tokens, w.steps, w.origins) == ([7], [[12, 13]], [[1, 0]], [[2, -1]])


def test_a_changed_draft_restarts_the_count_but_keeps_the_state():
    w = wave([5], [[10, 11, 12]])
    w.steps = [[6, 4, 2]]
    w.advance(0, frozen=0, predictions=[99, 12, 13], width=4, recurrences=2)
    assert w.tokens == [[10, 99, 12, 13]]
    assert w.steps == [[8, 0, 4, 0]]
    assert w.origins == [[0, 1, 2, -1]]


def test_headway_repeats_the_last_draft():
    w = wave([0], [[1]])
    w.advance(0, frozen=1, predictions=[2], width=3, recurrences=1)
    assert (w.fronts, w.tokens) == ([1], [[2, 2, 2]])


def test_the_limit_cuts_the_wave():
    w = wave([0], [[1, 2, 3]])
    w.advance(0, frozen=1, predictions=[2, 3, 4], width=2, recurrences=1)
    assert w.tokens == [[2, 3]] and w.origins == [[1, 2]]


def test_ragged_rows():
    w = wave([4, 9], [[1, 2], [5]])
    assert w.start is None
    assert w.tensors()[1].tolist() == [[4, 5], [9, -1]]
    w.advance(0, frozen=0, predictions=[2, 3], width=0, recurrences=1)
    assert w.tensors()[1].tolist() == [[-1], [9]]
    assert w.extent == 10


def test_states_are_carried_to_their_new_columns():
    rows = {"alone": ([5], [[10, 11, 12]]), "together": ([5, 7], [[10, 11, 12], [20, 21, 22]])}
    for fronts, tokens in rows.values():
        w = wave(fronts, tokens)
        old = torch.arange(3.0).expand(len(fronts), 3)[..., None].clone()
        w.advance(0, frozen=1, predictions=[11, 12, 13], width=3, recurrences=1)
        if len(fronts) > 1:
            w.advance(1, frozen=2, predictions=[21, 22, 23], width=2, recurrences=1)
        w.tensors()
        fresh = torch.full((len(fronts), w.width - w.first_fresh, 1), 100.0)
        carried = w.carry(old, fresh)[..., 0]
        assert carried[0].tolist() == [1.0, 2.0, 100.0]
        if len(fronts) > 1:
            assert carried[1, :2].tolist() == [2.0, 100.0]


def test_padding_of_ragged_rows_is_left_out():
    w = wave([5, 9, 3], [[10, 11], [20], []])
    input_ids, positions, *_ = w.tensors()
    unpadding = w.unpadding(positions)
    assert unpadding.unpad(input_ids).tolist() == [[10, 11, 20]] and unpadding.rows.tolist() == [0, 0, 1]
    w = wave([5, 9], [[10, 11], [20, 21]])
    input_ids, positions, *_ = w.tensors()
    assert w.unpadding(positions).unpad(input_ids) is input_ids

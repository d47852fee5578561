"""A row's bookkeeping, and the wave of all rows: what moves where when positions freeze and new ones enter."""

import pytest
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from hf_diffusion_forcing.generation.call import Call
from hf_diffusion_forcing.generation.choice import Prefix, TokenChoice
from hf_diffusion_forcing.generation.position import NEW, Position
from hf_diffusion_forcing.generation.row import Row
from hf_diffusion_forcing.generation.stopping import Stopping
from hf_diffusion_forcing.generation.wave import Wave

CPU = torch.device("cpu")
PROMPT = torch.zeros(1, 1, dtype=torch.long)
CALL = Call(
    TokenChoice(PROMPT, LogitsProcessorList(), 100, None, False), Stopping(set(), 100, StoppingCriteriaList(), CPU)
)


def row(ids, wave, shift=0, seed=7):
    """A row whose last id is the front's; `wave` lists the drafts behind it."""
    made = Row(CALL, number=0, ids=ids, shift=shift, seed=seed, last_position=100)
    made.wave = [Position(token) for token in [ids[-1], *wave]]
    return made


def tokens(row):
    return [position.token for position in row.wave]


def steps(row):
    return [position.steps for position in row.wave]


def commit(row, *ids):
    for token in ids:
        row.commit(token, torch.zeros(30), torch.zeros(30))


def test_where_a_row_stands():
    padded = row([0, 0, 3, 1, 4], [], shift=-2)
    assert padded.front == 2 and padded.prompt_length == 5 and padded.room == 99
    continued = row([9], [], shift=20)
    assert continued.front == 20
    commit(continued, 8, 7)
    assert continued.front == 22 and continued.prompt_length == 1


def test_nothing_frozen_one_new():
    r = row([10], [])
    r.advance(0, [11], width=2, recurrences=4)
    assert (tokens(r), steps(r), [p.cell for p in r.wave]) == ([10, 11], [4, 0], [NEW, NEW])


def test_a_frozen_prefix_leaves_and_the_rest_moves_up():
    r = row([10], [11, 12])
    Wave([r], CPU).settle()
    commit(r, 11, 12)
    r.advance(2, [11, 12, 13], width=2, recurrences=1)
    assert (r.front, tokens(r), steps(r), [p.cell for p in r.wave]) == (2, [12, 13], [1, 0], [2, NEW])


def test_a_changed_draft_restarts_the_count_but_keeps_the_state():
    r = row([10], [11, 12])
    Wave([r], CPU).settle()
    for position, count in zip(r.wave, (6, 4, 2), strict=True):
        position.steps = count
    r.advance(0, [99, 12, 13], width=4, recurrences=2)
    assert (tokens(r), steps(r), [p.cell for p in r.wave]) == ([10, 99, 12, 13], [8, 0, 4, 0], [0, 1, 2, NEW])


def test_headway_repeats_the_last_draft():
    r = row([1], [])
    commit(r, 2)
    r.advance(1, [2], width=3, recurrences=1)
    assert tokens(r) == [2, 2, 2]


def test_a_narrower_wave_drops_its_end():
    r = row([1], [2, 3])
    commit(r, 2)
    r.advance(1, [2, 3, 4], width=1, recurrences=1)
    assert tokens(r) == [2]


def test_the_wave_of_ragged_rows_stands_end_to_end():
    wave = Wave([row([5, 5, 1], [2]), row([3], [], shift=9, seed=8)], CPU)
    assert wave.ids.tolist() == [[1, 2, 3]] and wave.positions.tolist() == [[2, 3, 9]]
    assert wave.seats.tolist() == [[0, 0, 1]] and wave.seeds.tolist() == [[7, 7, 8]]
    assert wave.fresh.all() and wave.widths == [2, 1]
    assert [prefix for _, prefix in wave.prefixes] == [Prefix(0, 3, 3), Prefix(0, 4, 3), Prefix(0, 1, 1)]
    assert (wave.extents, wave.start, len(wave)) == ([4, 10], None, 3)
    assert Wave([row([5, 1], [2]), row([9, 3], [4])], CPU).start == 1


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("is_newest_first", [False, True])
def test_states_are_carried_to_where_their_positions_are(together, is_newest_first):
    rows = [row([10], [11, 12]), row([20], [21, 22])][: 1 + together]

    def wave():
        order = -1 if is_newest_first else 1
        return Wave(rows, CPU, [list(enumerate(r.wave))[::order] for r in rows])

    def name(wave):
        """Of each position its number in the text, and its row, as a state."""
        return (wave.positions + 100 * wave.seats)[..., None].float()

    first = wave()
    assert first.carry(None, name(first)).equal(name(first))
    first.settle()
    commit(rows[0], 11)
    rows[0].advance(1, [11, 12, 13], width=4, recurrences=1)
    if together:
        commit(rows[1], 21, 22)
        rows[1].advance(2, [21, 22, 23], width=1, recurrences=1)
    second = wave()
    fresh = name(second)[:, second.fresh[0]]
    assert second.carry(name(first), fresh).equal(name(second))
    recalled = second.recall({"key": name(first)})["key"]
    assert recalled[:, ~second.fresh[0]].equal(name(second)[:, ~second.fresh[0]])


def test_a_row_that_stays_as_it_is_is_not_copied():
    r = row([10], [11, 12])
    Wave([r], CPU).settle()
    state = torch.randn(1, 3, 4)
    assert Wave([r], CPU).carry(state, None).data_ptr() == state.data_ptr()

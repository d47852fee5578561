"""Rows end to end: attention of each is what it is alone, wherever the row sits and at whatever slots it stands."""

import copy
import pickle
import random
import sys

import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hf_diffusion_forcing import RecurrentDepthCache
from hf_diffusion_forcing.cache import Grid, NoCache, RoundedCapacity, RoundedExtents, Slots, memory
from hf_diffusion_forcing.cache.seats import STEP

HEADS, DIM, LENGTH = 4, 8, 150
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
WIDTHS = [[4, 1, 7], [3, 3, 3], [5], [1, 1], [20, 2], [2, 0, 3]]


class WrittenOut:
    """Keys and values of one row by slot and position, and attention as its formula says."""

    def __init__(self, slots: int, kv_heads: int):
        self.keys, self.values = torch.zeros(2, slots, LENGTH, kv_heads, DIM).unbind()

    def attend(self, positions, query, key, value, written, read):
        """[heads, width, head_dim]; of each position the slots that are written, and the one that is read."""
        for cell, position in enumerate(positions):
            for slot in written[cell]:
                self.keys[slot, position], self.values[slot, position] = key[:, cell], value[:, cell]
        seen = []
        for cell, position in enumerate(positions):
            group = HEADS // key.shape[0]
            keys = self.keys[read[cell], : position + 1].repeat_interleave(group, dim=1)
            values = self.values[read[cell], : position + 1].repeat_interleave(group, dim=1)
            scores = torch.einsum("hd,khd->hk", query[:, cell], keys) * DIM**-0.5
            seen.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values))
        return torch.stack(seen, dim=1) if seen else query


class Rows:
    """Rows in neighbouring seats of one cache; what `attend` gives is checked against every row written out."""

    def __init__(self, count, kv_heads=2, first_seat=0, num_steps=1, kv_sharing="last"):
        self.cache = RecurrentDepthCache(0, 1, 0, num_steps, kv_sharing)
        self.kv_heads, self.first_seat = kv_heads, first_seat
        self.alone = [WrittenOut(self.cache.core_slots, kv_heads) for _ in range(count)]

    def pass_over(self, positions, depth=0, start=None, written=None, read=None):
        """A pass over the positions of each row, drawn anew.

        Args:
            positions: of each row, in any order.
            depth: see `RecurrentDepthCache.place_rows`.
            written, read: of each row and position, the slots that are written and the one that is read.
        """
        widths = [len(row) for row in positions]
        flat = [position for row in positions for position in row]
        extents = [max(row, default=-1) + 1 for row in positions]
        rows = [number for number, row in enumerate(positions) for _ in row]
        at = self.cache.place_rows(
            torch.tensor([flat]), torch.tensor([rows]), widths, extents, start, self.first_seat, depth
        )
        query, key, value = (torch.randn(1, heads, len(flat), DIM) for heads in (HEADS, self.kv_heads, self.kv_heads))
        seen = at.attend(0, query, key, value, at.slot(0))
        assert seen.shape == query.shape
        written = written or [[[0]] * width for width in widths]
        read = read or [[0] * width for width in widths]
        parts = [x[0].split(widths, dim=1) for x in (seen, query, key, value)]
        for number, (got, *qkv) in enumerate(zip(*parts, strict=True)):
            expected = self.alone[number].attend(positions[number], *qkv, written[number], read[number])
            torch.testing.assert_close(got, expected, **CLOSE)
        return at


def draw(widths, below=LENGTH):
    """Positions of each row, none twice, in no order."""
    return [random.sample(range(below), width) for width in widths]


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize("first_seat", [0, 2])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("widths", WIDTHS)
def test_shared_slots(widths, kv_heads, first_seat):
    rows = Rows(len(widths), kv_heads, first_seat)
    for below in (30, 100, LENGTH):
        rows.pass_over(draw(widths, below))


@pytest.mark.parametrize("count", [1, 3])
def test_rows_that_stand_at_the_same_place(count):
    """A prompt, a token, and some more: each without a mask, with and without rows written before."""
    rows = Rows(count)
    for start, stop in ((0, 9), (9, 10), (10, 30), (0, 1), (30, 31)):
        rows.pass_over([list(range(start, stop))] * count, start=start)


@pytest.mark.parametrize("first_seat", [0, 3])
@pytest.mark.parametrize("kv_sharing", ["none", 3])
@pytest.mark.parametrize("widths", WIDTHS)
def test_each_position_at_its_own_recurrence(widths, kv_sharing, first_seat):
    """A tensor of depths: before the slots are full all later ones are written, too."""
    rows = Rows(len(widths), 2, first_seat, num_steps=5, kv_sharing=kv_sharing)
    slots = rows.cache.core_slots
    for _ in range(4):
        depths = [[random.randrange(9) for _ in range(width)] for width in widths]
        read = [[min(d, slots - 1) if kv_sharing == "none" else d % slots for d in row] for row in depths]
        written = [
            [range(d, slots) if d < slots else [slot] for d, slot in zip(*pair, strict=True)]
            for pair in zip(depths, read, strict=True)
        ]
        depth = torch.tensor([[d for row in depths for d in row]])
        rows.pass_over(draw(widths), depth, written=written, read=read)


SPACED = {
    "no order": lambda width: [random.randrange(8) for _ in range(width)],
    "falling": lambda width: list(range(width - 1, -1, -1)),
    "rising": lambda width: list(range(width)),
    "two apart": lambda width: list(range(0, 2 * width, 2)),
    "all alike": lambda width: [3] * width,
    "in pairs": lambda width: [place // 2 * 2 for place in range(width)],
    "cohorts of any size": lambda width: sorted(random.choices(range(0, 9, 2), k=width)),
}


@pytest.mark.parametrize("first_seat", [0, 2])
@pytest.mark.parametrize("order", SPACED)
@pytest.mark.parametrize("widths", [w for w in WIDTHS if max(w) < 8])
def test_each_position_at_a_slot_known_on_the_host(widths, order, first_seat):
    rows = Rows(len(widths), 2, first_seat, num_steps=16, kv_sharing="none")
    for step in range(4):
        depths = [SPACED[order](width) for width in widths]
        flat = tuple(d for row in depths for d in row)
        written = [[[d + step % 2] for d in row] for row in depths]
        read = [[d + step % 2 for d in row] for row in depths]
        depth = Slots(flat, torch.tensor(flat)) + step % 2
        at = rows.pass_over(draw(widths), depth, written=written, read=read)
        runs = at.runs(depth.host)
        assert [cell for run in runs for cell in range(run.cells.start, run.cells.stop)] == list(range(len(flat)))
        if order in ("rising", "two apart", "all alike", "in pairs"):
            assert len(runs) == sum(width > 0 for width in widths)  # a view of each row


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_grid_of_rows_is_each_row_alone(use_cache):
    """With padding on either side."""
    positions = torch.tensor([[-1, -1, 0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, -1, -1]])
    query, key, value = (torch.randn(3, heads, 5, DIM) for heads in (HEADS, 2, 2))

    def attend(positions, *qkv, start=None):
        cache = RecurrentDepthCache(1, 0, 0, 1) if use_cache else NoCache()
        return cache.place(positions, start).attend(0, *qkv)

    together = attend(positions, query, key, value)
    for row in range(3):
        real = positions[row] >= 0
        alone = (x[row : row + 1, :, real] for x in (query, key, value))
        expected = attend(positions[row : row + 1, real], *alone, start=0)
        torch.testing.assert_close(together[row : row + 1, :, real], expected, **CLOSE)


@torch.no_grad()
def test_the_verbs_on_rows_end_to_end_are_forward(family):
    """A row's logits are those of its own `forward()`: rotation, noise and attention know a position's row."""
    texts = [[5, 3, 8, 1], [9], [2, 6, 4]]
    widths, ids = [len(text) for text in texts], torch.tensor([[token for text in texts for token in text]])
    seeds = torch.tensor([[row + 1 for row, width in enumerate(widths) for _ in range(width)]])
    positions = torch.tensor([[place for width in widths for place in range(width)]])
    for kv_sharing in ("last", "none"):
        cache = family.new_cache(3, kv_sharing)
        at = cache.place_rows(positions, seeds - 1, widths, widths, first_seat=1)
        e = family.embed(ids, at)
        s = family.initialize_state(e, positions, seeds)
        for depth in range(3):
            s = family.recur(s, e, at, depth)
        logits = family.decode(s, at)
        for row, part in enumerate(logits.split(widths, dim=1)):
            alone = family(torch.tensor([texts[row]]), num_steps=3, seeds=torch.tensor([row + 1]), use_cache=False)
            torch.testing.assert_close(part, alone.logits, atol=1e-4, rtol=1e-4)


# --- seats and memory ---


def test_rows_write_in_their_seats_alone():
    rows = Rows(2, first_seat=3)
    rows.pass_over([[0, 1], [0, 1, 2]])
    keys = rows.cache.keys[0][0]
    assert keys.shape[0] == rows.cache.seats == 5
    assert not keys[:3].any() and keys[3, :, :2].all() and keys[4, :, :3].all() and not keys[3, :, 2:].any()


def test_memory_grows_by_steps_and_keeps_what_was_written():
    cache, capacities = RecurrentDepthCache(1, 0, 0, 1), []
    written = torch.randn(1, 2, 500, DIM)
    for position in range(500):
        x = written[:, :, position : position + 1]
        cache.place(torch.tensor([[position]]), position).attend(0, x, x, x)
        assert torch.equal(cache.keys[0][0, :, :, : position + 1], written[:, :, : position + 1])
        if cache.capacity not in capacities:
            capacities.append(cache.capacity)
    assert capacities == [64, 128, 192, 320, 512] and all(each % STEP == 0 for each in capacities)
    assert cache.keys[0].shape[3] == 513 and not cache.keys[0][:, :, :, 500:].any()


def test_a_first_capacity_is_taken_as_it_is_and_more_seats_keep_it():
    cache = RecurrentDepthCache(1, 0, 0, 1, capacity=10)
    x = torch.randn(1, 2, 3, DIM)
    cache.place(torch.arange(3)[None], 0).attend(0, x, x, x)
    assert cache.keys[0].shape == (1, 1, 2, 11, DIM)
    cache.place_rows(torch.tensor([[0]]), torch.tensor([[0]]), [1], [1], first_seat=4)
    assert cache.keys[0].shape == (1, 5, 2, 11, DIM)
    assert torch.equal(cache.keys[0][0, :1, :, :3], x) and not cache.keys[0][0, 1:].any()


def test_a_copy_has_of_a_seat_what_was_written_in_it():
    """A long row beside short ones costs no more than its own keys and values, also after it has moved."""
    rows = Rows(3)
    rows.pass_over([[*range(9)], [0, 1], [0]])
    cache = rows.cache
    cache.swap_seats(0, 2)
    cache.copy_seat(1, 0, 2)
    assert cache.filled == [2, 2, 9]
    kept = [cache.keys[0][0, seat, :, :length].clone() for seat, length in enumerate(cache.filled)]
    cache.keys[0][0, 0, :, 2:] = 7.0  # nobody wrote it, and nobody reads it
    cache.batch_select_indices(torch.tensor([2, 0, 1, 0]))
    assert cache.filled == [9, 2, 2, 2]
    for seat, origin in enumerate((2, 0, 1, 0)):
        copy, expected = cache.keys[0][0, seat], kept[origin]
        assert torch.equal(copy[:, : expected.shape[1]], expected) and not copy[:, expected.shape[1] :].any()


@pytest.mark.parametrize("has_addresses", [True, False])
def test_growth_keeps_what_was_written(has_addresses, monkeypatch):
    monkeypatch.setattr(memory, "SMALL", 0)
    if not has_addresses:  # as under another system, or with a limit on addresses
        monkeypatch.setattr(memory, "ADDRESSES", 1)
    elif sys.platform != "linux":
        pytest.skip("Only Linux gives addresses without memory.")
    rows = Rows(3)
    rows.pass_over([[*range(9)], [0, 1], [0]])
    cache, x = rows.cache, torch.full((1, 2, 1, DIM), float("nan"))
    padding = torch.tensor([[-1], [-1], [-1]])
    cache.place(padding, extent=1).attend(0, *[x.expand(3, -1, -1, -1)] * 3)
    before, kept = cache.keys[0], cache.keys[0][0, :, :, :9].clone()
    for capacity, seats in ((65, 3), (65, 5), (400, 7)):
        cache.reserve(capacity, seats)
        grown = cache.keys[0]
        assert torch.equal(grown[0, :3, :, :9], kept) and grown[..., :capacity, :].isfinite().all()
        assert not grown[:, :, :, 9:capacity].any() and not grown[:, 3:].any()
        assert grown.shape[1:4:2] == (seats, cache.capacity + 1) and cache.filled == [9, 2, 1] + [0] * (seats - 3)
        assert (grown.data_ptr() == before.data_ptr()) == has_addresses
    cache.reserve(10_000, 40)  # more than there are addresses for
    assert torch.equal(cache.keys[0][0, :3, :, :9], kept) and cache.keys[0].data_ptr() != before.data_ptr()


@pytest.mark.skipif(sys.platform != "linux", reason="Only Linux gives addresses without memory.")
def test_a_cpu_takes_memory_for_what_is_written():
    cache, process = RecurrentDepthCache(1, 0, 0, 1, capacity=2**17), psutil.Process()
    x = torch.randn(1, 2, 3, DIM)
    before = process.memory_info().rss
    for seat in range(8):
        place = torch.arange(3)[None]
        cache.place_rows(place, torch.zeros_like(place), [3], [3], first_seat=seat).attend(0, x, x, x)
    cache.reserve(2**19, 8)
    assert cache.nbytes > 256 * 2**20 and process.memory_info().rss - before < 16 * 2**20
    assert torch.equal(cache.values[0][0, 7, :, :3], x[0])


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_of_a_cache_takes_no_more_memory_than_the_cache(copy_of, monkeypatch):
    monkeypatch.setattr(memory, "SMALL", 0)
    rows = Rows(2)
    rows.pass_over([[0, 1], [0]])
    other = copy_of(rows.cache)
    assert torch.equal(other.keys[0], rows.cache.keys[0]) and other.filled == rows.cache.filled
    assert sum(t.untyped_storage().nbytes() for t in (*other.keys, *other.values)) == rows.cache.nbytes


def test_growth_stops_at_the_limit():
    for capacity, limit, extent, expected in ((320, None, 321, 512), (320, 330, 321, 384), (320, 330, 400, 512)):
        cache = RecurrentDepthCache(1, 0, 0, 1, capacity=capacity)
        cache.limit = limit
        assert cache.capacity_for(extent, limit) == expected and cache.capacity_for(capacity, limit) == capacity
        cache.reserve(extent, 1)
        assert cache.capacity == expected


@given(
    extents=st.lists(st.integers(1, 700), min_size=1, max_size=12),
    kind=st.sampled_from([lambda cache: cache, RoundedExtents, RoundedCapacity]),
)
def test_growth_never_passes_what_is_foretold_for_the_longest_row(extents, kind):
    cache = RecurrentDepthCache(1, 0, 0, 1)
    asked = kind(cache)
    cache.limit = max(extents)
    foretold = asked.capacity_for(cache.limit, cache.limit)
    for extent in extents:
        at = torch.tensor([[extent - 1]])
        asked.place_rows(at, torch.zeros_like(at), [1], [extent])
        assert extent <= cache.capacity <= foretold
    assert cache.capacity == foretold


def test_growth_between_passes_changes_no_attention():
    rows = Rows(2, num_steps=4, kv_sharing="none")
    for below in (10, 70, 140):
        flat = (1, 3, 0)
        read = [[1, 3], [0]]
        written = [[[1], [3]], [[0]]]
        rows.pass_over(draw([2, 1], below), Slots(flat, torch.tensor(flat)), written=written, read=read)


@pytest.mark.parametrize("seats", [(0, 2), (2, 1), (1, 1)])
def test_rows_that_swap_seats(seats):
    rows = Rows(3)
    rows.pass_over(draw([6, 6, 6], 80))
    rows.cache.swap_seats(*seats)
    first, second = seats
    rows.alone[first], rows.alone[second] = rows.alone[second], rows.alone[first]
    rows.pass_over(draw([2, 5, 1]))


def test_deeper_slots_get_the_last_recurrence_there_has_been():
    rows = Rows(2, first_seat=1, num_steps=4, kv_sharing="none")
    at = rows.pass_over([[0, 1], [0]])
    rows.cache.settle(at, 1)
    keys = rows.cache.keys[0]
    assert torch.equal(keys[3], keys[0]) and keys[3, 1, :, :2].all() and not keys[:, 0].any()
    rows.cache.settle(at, 4)  # nothing is deeper


def test_what_is_not_finite_is_scrubbed_from_one_seat():
    rows = Rows(2)
    rows.pass_over([[0, 1], [0, 1]])
    rows.cache.keys[0][0, :, 0, 0] = float("nan")
    rows.cache.scrub(0)
    assert rows.cache.keys[0][0, 0].isfinite().all() and rows.cache.keys[0][0, 1, 0, 0].isnan().all()


def test_rows_of_a_cache_that_was_never_written():
    cache = RecurrentDepthCache(1, 0, 0, 1)
    cache.batch_select_indices(torch.tensor([1, 0]))
    assert cache.filled == [0, 0] and cache.seats == 2
    x = torch.randn(2, 2, 3, DIM)
    cache.place(torch.arange(3).expand(2, 3), 0).attend(0, x, x, x)
    assert torch.equal(cache.keys[0][0, :, :, :3], x)


# --- the grid, and other devices ---


@pytest.mark.parametrize("widths", WIDTHS)
def test_a_grid_and_back(widths):
    grid, n = Grid(widths, torch.device("cpu")), sum(widths)
    x = torch.randn(1, n, 3)
    padded = grid.pad(x)
    assert padded.shape == (len(widths), max(widths), 3) and torch.equal(grid.unpad(padded), x)
    for row, part in enumerate(x[0].split(widths)):
        assert torch.equal(padded[row, : len(part)], part)
        assert (padded[row, len(part) :] == x[0, 0]).all()


def test_a_placement_is_brought_to_a_device_once():
    at = RecurrentDepthCache(1, 0, 0, 1).place(torch.tensor([[0, 1], [-1, 0]]))
    at.rotary = torch.ones(2)
    there = at.to("meta")
    assert there is at.to("meta") and at.to("cpu") is at and there.cache is at.cache
    assert {x.device.type for x in (there.positions, there.rows, there.mask, there.rotary)} == {"meta"}


def test_many_queries_of_several_rows_after_others():
    """More than attention takes at a time."""
    query, key, value = (torch.randn(2, heads, 305, DIM) for heads in (HEADS, 2, 2))
    cache = RecurrentDepthCache(1, 0, 0, 1)
    rows = torch.arange(2).repeat_interleave(300)[None]

    def part(x, start, stop):
        return x[:, :, start:stop].transpose(1, 2).flatten(0, 1)[None].transpose(1, 2)

    cache.place(torch.arange(5).expand(2, -1), start=0).attend(0, *(x[:, :, :5] for x in (query, key, value)))
    positions = torch.arange(5, 305).repeat(2)[None]
    at = cache.place_rows(positions, rows, [300, 300], [305, 305], start=5)
    seen = at.attend(0, *(part(x, 5, 305) for x in (query, key, value)))
    mask = torch.ones(300, 305, dtype=torch.bool).tril(5)
    expected = F.scaled_dot_product_attention(query[:, :, 5:], key, value, mask, enable_gqa=True)
    torch.testing.assert_close(seen, part(expected, 0, 300), **CLOSE)


@pytest.mark.parametrize(("start", "width"), [(0, 3), (5, 1), (2, 4)])
@pytest.mark.parametrize("rows", [1, 2])
def test_slots_on_a_placement_with_a_start(start, width, rows):
    """With and without `start` the same: it only says that no mask, or one for all rows, is needed."""
    torch.manual_seed(0)
    depths = tuple((depth * 2) % 3 for depth in range(rows * width))
    slots = Slots(depths, torch.tensor(depths))
    positions = torch.arange(start, start + width).repeat(rows)[None]
    seats = torch.arange(rows).repeat_interleave(width)[None]
    before, new = torch.randn(2, 3, rows, start, 4), torch.randn(3, 1, 2, rows * width, 4)
    read = []
    for first in (start, None):
        cache = RecurrentDepthCache(0, 1, 0, 3, "none")
        cache.place(torch.zeros(rows, 1, dtype=torch.long), extent=start + width)
        at = cache.place_rows(positions, seats, [width] * rows, [start + width] * rows, first)
        cache.keys[0], cache.values[0] = (
            torch.nn.functional.pad(each[:, :, None].expand(-1, -1, 2, -1, -1), (0, 0, 0, cache.capacity + 1 - start))
            for each in before
        )
        read.append(at.attend(0, *new, slots))
    assert read[0].equal(read[1]) and read[0].abs().sum() > 0

"""Admission without a model: first come, first served, within the limits."""

import queue
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_diffusion_forcing.serving.scheduler import Limits, Load, Scheduler


@dataclass
class Waits:
    id: str


def load(rows=1, positions=1, group_rows=1, cache_bytes=0):
    return Load(rows, positions, group_rows, cache_bytes)


def test_the_queue_is_bounded():
    scheduler = Scheduler(Limits(rows=1, positions=1, queue=2))
    for name in "ab":
        scheduler.add(Waits(name))
    with pytest.raises(queue.Full, match="max_queue_size=2"):
        scheduler.add(Waits("c"))
    assert scheduler.remove("a").id == "a" and scheduler.remove("a") is None
    scheduler.add(Waits("c"))
    assert [each.id for each in scheduler.waiting] == ["b", "c"]


def test_without_a_bound_any_number_waits():
    scheduler = Scheduler(Limits(rows=1, positions=1))
    for number in range(2000):
        scheduler.add(Waits(str(number)))
    assert len(scheduler.waiting) == 2000


def test_limits():
    scheduler = Scheduler(Limits(rows=3, positions=32, cache_bytes=100))
    assert scheduler.has_room(load(3, 32, 2)) and scheduler.has_memory(load(cache_bytes=100))
    assert not scheduler.has_room(load(4, 8, 4))
    assert not scheduler.has_room(load(2, 33, 2))
    assert scheduler.has_room(load(1, 1000, 1))  # a row alone may be as wide as it is
    assert not scheduler.has_memory(load(cache_bytes=101))
    assert Scheduler(Limits(rows=3, positions=32)).has_memory(load(cache_bytes=10**15))


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "take"]), st.integers(0, 5))), st.integers(1, 4))
def test_it_is_a_queue(steps, bound):
    """Whatever happens, requests leave in the order in which they came, and no more wait than may."""
    scheduler, expected = Scheduler(Limits(rows=1, positions=1, queue=bound)), []
    for number, (step, other) in enumerate(steps):
        if step == "add":
            try:
                scheduler.add(Waits(str(number)))
                expected.append(str(number))
            except queue.Full:
                assert len(expected) == bound
        elif step == "remove":
            name = expected.pop(other % len(expected)) if expected else "none"
            assert (scheduler.remove(name) is None) == (name == "none")
        elif expected:
            assert scheduler.waiting.popleft().id == expected.pop(0)
        assert [each.id for each in scheduler.waiting] == expected

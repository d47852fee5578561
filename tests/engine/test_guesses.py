"""Guesses without a model: what is remembered, found, learnt, and taken."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_diffusion_forcing import (
    DRAFT_SOURCES,
    DraftSource,
    PromptLookup,
    SpeculativeWavefrontConfig,
    draft_source,
    register_draft_source,
)
from hf_diffusion_forcing.generation.cost_curve import CostCurve
from hf_diffusion_forcing.generation.draft_choice import choose_guesses
from hf_diffusion_forcing.generation.guesses import DROPPED, Guesses
from hf_diffusion_forcing.generation.position import Position


def test_dropped_drafts_are_found_by_their_place():
    kept = Guesses(None, 61, {5})
    kept.keep(10, [1, 2, 3, 4, 5, 6])
    assert kept.propose([0] * 11, 2) == [(DROPPED, 2), (DROPPED, 3)]
    assert [token for _, token in kept.propose([0] * 11, 9)] == [2, 3, 4], "5 ends a text"
    kept.keep(12, [7])
    assert [token for _, token in kept.propose([0] * 12, 9)] == [7, 4]
    assert kept.propose([0] * 9, 4) == [], "what comes before is not known"


def test_prompt_lookup():
    source = PromptLookup(max_ngram=3, min_ngram=2)
    assert source.propose([1, 2, 3, 4, 9, 2, 3], 2) == [4, 9]
    assert source.propose([1, 2, 3, 4, 9, 2, 3, 5, 2, 3], 2) == [5, 2], "the last place"
    assert source.propose([7, 2, 3, 1, 8, 2, 3, 5, 7, 2, 3], 1) == [1], "the longest match first"
    assert source.propose([4, 4, 4], 5) == [4], "a match may overlap the end"
    assert source.propose([1, 2, 3], 4) == source.propose([1], 4) == []
    assert source.propose([55296, 200000, 5, 55296, 200000], 4) == [5, 55296, 200000], "ids of every size"


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4), st.integers(1, 6))
def test_prompt_lookup_against_its_definition(ids, most, count):
    def expected():
        for length in range(min(most, len(ids) - 1), 0, -1):
            for found in range(len(ids) - length - 1, -1, -1):
                if ids[found : found + length] == ids[len(ids) - length :]:
                    return ids[found + length : found + length + count]
        return []

    assert PromptLookup(max_ngram=most, min_ngram=1).propose(ids, count) == expected()


@dataclass
class Unnamed(DraftSource):
    def propose(self, ids, count):
        return []


def test_a_source_of_ones_own_is_saved_by_name(tmp_path):
    @register_draft_source
    @dataclass
    class Again(DraftSource):
        name: ClassVar[str] = "again"
        times: int = 2

        def propose(self, ids, count):
            return ids[-1:] * self.times

    try:
        config = SpeculativeWavefrontConfig(draft_tokens=3, draft_source=Again(times=5))
        config.save_pretrained(tmp_path)
        stored = json.loads((tmp_path / "sampler_config.json").read_text())
        assert stored["sampler_config"]["draft_source"] == {"name": "again", "times": 5}
        loaded = SpeculativeWavefrontConfig.from_pretrained(tmp_path)
        assert draft_source(loaded.draft_source) == Again(times=5)
    finally:
        DRAFT_SOURCES.pop("again")
    with pytest.raises(TypeError, match="not registered"):
        SpeculativeWavefrontConfig(draft_source=Unnamed()).to_dict()


def test_auto_takes_guesses_while_they_pay():
    flat = CostCurve(core=(1.0,) * 7, ends=(0.5,) * 7)
    assert choose_guesses(flat, [0.9, 0.9, 0.9], 8, 2) == 3
    assert choose_guesses(flat, [0.9, 0.0, 0.9], 8, 2) == 1
    steep = CostCurve(core=tuple(float(2**i) for i in range(7)), ends=(0.5,) * 7)
    assert choose_guesses(steep, [0.1, 0.1, 0.1], 8, 2) == 0
    assert choose_guesses(flat, [], 8, 2) == 0


def test_a_guess_beats_readouts_that_were_wrong_where_it_was_right():
    guesses = Guesses(PromptLookup(), 61, set())
    position = Position(2, steps=1, proposals={1: 8, 4: 9}, guess=("prompt_lookup", 9))
    assert guesses.preferred(position, 8) == 8
    guesses.learn(position, 9)
    assert guesses.preferred(position, 8) == 9
    position.steps = 4
    assert guesses.preferred(position, 8) == 8, "they have not disagreed at this depth"
    for token in (8, 8):
        guesses.learn(position, token)
    position.steps = 1
    assert guesses.preferred(position, 8) == 8
    assert guesses.preferred(Position(2, steps=1), 8) == 8


def test_a_source_that_is_right_more_often_goes_first():
    guesses = Guesses(PromptLookup(), 61, set())
    guesses.keep(4, [9, 9])
    ids = [1, 2, 1, 2]
    assert guesses.propose(ids, 2) == [(DROPPED, 9), (DROPPED, 9)]
    for _ in range(30):
        guesses.learn(Position(2, guess=(DROPPED, 9)), 1)
    assert guesses.propose(ids, 2) == [("prompt_lookup", 1), ("prompt_lookup", 2)]

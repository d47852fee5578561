"""Random load: whatever arrives, every text is the one it would be alone, and everything is given back."""

import random
import time

import pytest
from hypothesis import settings as how_often
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from transformers.generation.continuous_batching import RequestStatus

from support import random_model
from support.batching import alone, no_thread_left

WAYS = [
    {"sampler": "diffusion_forcing", "wavefront": 4, "inner_recurrence": 2},
    {"sampler": "diffusion_forcing", "wavefront": 6, "inner_recurrence": 1, "adaptive_prefill": True},
    {"sampler": "diffusion_forcing", "wavefront": 3, "kv_sharing": "none", "prefill_chunk_size": 4},
    {"sampler": "speculative_wavefront", "draft_depth": 1, "second_draft_depth": 3},
    {"sampler": "adaptive"},
    {"sampler": "autoregressive"},
    {},
]


SYSTEM = [7, 3, 50, 21, 9, 9, 14, 2, 33, 8, 1, 40]
"""What many prompts begin with."""


def random_request(chance: random.Random):
    """A prompt and keywords of `generate()`."""
    prompt = [chance.randrange(1, 61) for _ in range(chance.choice([1, 2, 5, 9, 20]))]
    if chance.random() < 0.7:
        prompt = SYSTEM[: chance.choice([4, 9, 12])] + prompt
    keywords = chance.choice(WAYS) | {"seed": chance.randrange(2), "max_new_tokens": chance.choice([1, 3, 8, 14])}
    if keywords.get("sampler") and chance.random() < 0.5:
        keywords |= {"do_sample": True, "temperature": chance.choice([0.7, 1.5])}
    if chance.random() < 0.4:
        keywords["eos_token_id"] = [chance.randrange(61) for _ in range(8)]
    if chance.random() < 0.2:
        keywords["repetition_penalty"] = 1.4
    return prompt, keywords


@pytest.mark.parametrize("count", [30, pytest.param(200, marks=pytest.mark.full)])
def test_random_requests(count):
    model, chance = random_model(), random.Random(count)
    calls, cancelled = {}, set()
    limits = {"max_batch_size": 6, "max_batch_tokens": 16, "max_cache_bytes": 3_000_000}
    with no_thread_left():
        with model.continuous_batching_context_manager(**limits) as manager:
            for _ in range(count):
                prompt, keywords = random_request(chance)
                name = manager.add_request(prompt, streaming=chance.random() < 0.3, **keywords)
                calls[name] = prompt, keywords
                if chance.random() < 0.15:
                    cancelled.add(name)
                    manager.cancel_request(name)
                time.sleep(chance.choice([0, 0, 0.01, 0.03]))
            engine = manager._engine
        assert manager.stats.reused_positions
        results = {result.request_id: result for result in manager}
    assert sorted(results) == sorted(calls)
    assert not engine.groups and not engine.scheduler.waiting and engine.cache_bytes == 0
    assert manager.stats.requests == count
    for name, (prompt, keywords) in calls.items():
        result, text = results[name], alone(model, prompt, **keywords)
        if result.status == RequestStatus.FAILED:
            assert name in cancelled and "cancelled" in result.error
            assert result.generated_tokens == text[: len(result.generated_tokens)]
        else:
            assert result.generated_tokens == text


class Batching(RuleBasedStateMachine):
    """Requests are added, cancelled and taken while the manager starts, pauses and stops."""

    def __init__(self):
        super().__init__()
        self.manager = random_model().init_continuous_batching(max_batch_size=3, max_batch_tokens=8)
        self.calls, self.cancelled, self.seen = {}, set(), {}

    def is_up(self):
        return self.manager.is_running()

    @precondition(lambda self: not self.is_up())
    @rule()
    def start(self):
        self.manager.start()

    @precondition(is_up)
    @rule(seed=st.integers(0, 10**6))
    def add(self, seed):
        prompt, keywords = random_request(random.Random(seed))
        self.calls[self.manager.add_request(prompt, **keywords)] = prompt, keywords

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 20))
    def cancel(self, which):
        name = list(self.calls)[which % len(self.calls)]
        self.cancelled.add(name)
        self.manager.cancel_request(name)

    @precondition(lambda self: self.is_up() and len(self.seen) < len(self.calls))
    @rule()
    def take(self):
        result = self.manager.get_result()
        self.seen[result.request_id] = result

    @precondition(is_up)
    @rule(seeds=st.lists(st.integers(0, 10**6), max_size=3))
    def pause(self, seeds):
        with self.manager.pause():
            for seed in seeds:
                self.add(seed)
            members = [(each.id, each.tokens) for each in self.manager._engine.members]
            time.sleep(0.002)
            assert members == [(each.id, each.tokens) for each in self.manager._engine.members]

    @precondition(is_up)
    @rule(hard=st.booleans())
    def stop(self, hard):
        self.manager.stop(hard_stop=hard)
        assert not self.is_up()
        left = {result.request_id: result for result in self.manager}
        assert not left.keys() & self.seen.keys()
        self.seen |= left
        assert self.seen.keys() == self.calls.keys()
        if not hard:
            for name, result in left.items():
                assert result.error is None or name in self.cancelled

    def teardown(self):
        if self.is_up():
            self.stop(False)
        for name, result in self.seen.items():
            prompt, keywords = self.calls[name]
            text = alone(random_model(), prompt, **keywords)
            if result.error is None:
                assert result.generated_tokens == text
            else:
                assert result.generated_tokens == text[: len(result.generated_tokens)]


@pytest.mark.parametrize("examples", [4, pytest.param(60, marks=pytest.mark.full)])
def test_requests_come_and_go_while_it_starts_pauses_and_stops(examples):
    with no_thread_left():
        run_state_machine_as_test(
            Batching, settings=how_often(max_examples=examples, stateful_step_count=12, deadline=None)
        )

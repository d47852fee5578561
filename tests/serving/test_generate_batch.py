"""Continuous batching: each request gets the text it would have alone, and no request harms another."""

import asyncio
import queue
import threading
from itertools import pairwise, product

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.continuous_batching import RequestStatus

from hf_diffusion_forcing.generation.cost_curve import CostCurve
from hf_diffusion_forcing.serving.budget import affordable_positions
from hf_diffusion_forcing.serving.engine import Engine
from hf_diffusion_forcing.serving.request import prepare, request_of
from hf_diffusion_forcing.serving.scheduler import Limits
from support import left_pad
from support.batching import SETTINGS, alone, no_thread_left
from support.heads import with_start_head
from support.matrix import cases
from support.streamers import Recorder

WAVES = SETTINGS["diffusion_forcing"]


class Raises(LogitsProcessor):
    """Raises once a row has enough ids."""

    def __init__(self, length):
        self.length = length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= self.length:
            raise ArithmeticError("no more of this")
        return scores


class Favours(LogitsProcessor):
    """Keeps a state: the ids it was called with."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids[0].tolist())
        scores = scores.clone()
        scores[:, 97 + len(self.seen) % 7] += 2
        return scores


def few(prompts, count=4):
    return [prompts[index % len(prompts)][: 6 + 5 * index] for index in range(count)]


@pytest.mark.parametrize(
    ("name", "is_sampling"),
    cases(
        # Without a sampler and alone, a sample is drawn from torch's generator.
        [case for case in product(SETTINGS, [False, True]) if case != ("no sampler", True)],
        keep=[
            ("fast", True),
            ("lossless", True),
            ("adaptive", False),
            ("hooks", True),
            ("learned start", False),
            ("chunks", False),
            ("auto", False),
        ],
    ),
)
def test_a_request_gets_the_text_it_would_have_alone(huginn_mini, prompts, name, is_sampling):
    settings = SETTINGS[name] | {"max_new_tokens": 8, "do_sample": is_sampling}
    given, model = few(prompts), with_start_head(huginn_mini)
    with no_thread_left():
        results = model.generate_batch(given, seed=3, max_batch_size=3, **settings)
    assert list(results) == [f"req_{number}" for number in range(len(given))]
    for number, (prompt, result) in enumerate(zip(given, results.values(), strict=True)):
        assert result.status == RequestStatus.FINISHED and result.error is None
        assert result.prompt_ids == prompt
        assert result.generated_tokens == alone(model, prompt, seed=3 + number, **settings)


@pytest.fixture(scope="module")
def short(prompts):
    """Four short prompts of different lengths."""
    return [prompt[: 7 + 4 * index] for index, prompt in enumerate(prompts)]


@pytest.mark.parametrize("sampler", ["lossless", "adaptive"])
def test_every_family(family, sampler):
    """HRM-Text's prompts are read in one piece; its drafts and tokens tick with the others."""
    given = [[5, 9, 3, 7, 4], [8, 2, 6], [4, 4, 9, 6, 1, 3, 2]]
    depth = max(2, min(4, family.config.mean_recurrence))
    settings = SETTINGS[sampler] | {"num_steps": depth, "max_new_tokens": 6}
    results = family.generate_batch(given, seed=1, **settings)
    for number, (prompt, result) in enumerate(zip(given, results.values(), strict=True)):
        assert result.generated_tokens == alone(family, prompt, seed=1 + number, **settings)


def test_prompts_that_are_read_in_both_directions():
    from transformers import AutoModelForCausalLM

    from support import FAMILIES

    model = AutoModelForCausalLM.from_pretrained(FAMILIES["hrm_text"]).eval()
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    prompt = [5, 9, 3, 7, 4]
    types = torch.tensor([[1, 1, 1, 1, 0]])
    settings = SETTINGS["lossless"] | {"num_steps": 2, "max_new_tokens": 5, "seed": 0}
    with model.continuous_batching_context_manager() as manager:
        manager.add_request([3, 1, 4, 1, 5, 9], **settings)
        name = manager.add_request(prompt, token_type_ids=types, **settings)
        result = manager.get_result(name)
    assert result.generated_tokens == alone(model, prompt, token_type_ids=types, **settings)
    assert result.generated_tokens != alone(model, prompt, **settings)


def test_different_samplers_at_a_time(huginn_mini, short):
    """Rows of different settings tick apart; each brings its own generation config or keywords."""
    config = GenerationConfig(do_sample=True, temperature=0.7, top_k=20, max_new_tokens=9)
    calls = [
        (short[0], SETTINGS["fast"] | {"seed": 1, "max_new_tokens": 12}),
        (short[1], SETTINGS["lossless"] | {"seed": 2, "max_new_tokens": 7}),
        (short[2], SETTINGS["autoregressive"] | {"seed": 3, "generation_config": config}),
        (short[3], SETTINGS["fast"] | {"seed": 4, "generation_config": config}),
        (short[0], SETTINGS["adaptive"] | {"seed": 5, "max_new_tokens": 5, "repetition_penalty": 1.3}),
    ]
    with huginn_mini.continuous_batching_context_manager() as manager:
        names = [manager.add_request(prompt, **keywords) for prompt, keywords in calls]
        results = [manager.get_result(name) for name in reversed(names)][::-1]
    for (prompt, keywords), result in zip(calls, results, strict=True):
        assert result.generated_tokens == alone(huginn_mini, prompt, **keywords)


def test_ticks_are_shared(huginn_mini, short):
    """Requests that tick together need little more ticks than the longest of them alone."""
    settings = WAVES | {"max_new_tokens": 12, "seed": 0}
    ticks = []
    for given in (short[:1], short[:1] * 4):
        with huginn_mini.continuous_batching_context_manager(max_batch_tokens=64) as manager:
            with manager.pause():
                names = manager.add_requests(given, **settings | {"seed": [0] * len(given)})
            for name in names:
                manager.get_result(name)
        ticks.append(manager.stats.ticks)
        assert manager.stats.tokens == 12 * len(given) and manager.stats.requests == len(given)
        assert manager.stats.to_dict()["tokens_per_tick"] == 12 * len(given) / manager.stats.ticks
    assert ticks[1] == ticks[0]


def test_a_long_prompt_is_read_beside_the_ticks_of_others(huginn_mini, short):
    """The request that is there goes on while a prompt of many positions is read."""
    long = (short[2] * 20)[:240]
    first, second = Recorder(), Recorder()
    seen = []
    second.put = lambda value: seen.append(len(first.committed)) or Recorder.put(second, value)
    settings = WAVES | {"inner_recurrence": 1, "max_new_tokens": 40, "seed": 0}
    with huginn_mini.continuous_batching_context_manager(max_batch_tokens=1) as manager:
        manager.add_request(short[0], streamer=first, **settings)
        while len(first.committed) == len(short[0]):
            pass
        before = len(first.committed)
        name = manager.add_request(long, streamer=second, **SETTINGS["adaptive"] | {"max_new_tokens": 2, "seed": 0})
        manager.get_result(name)
    # seen[0] is the prompt itself, given when the request is made; seen[1] the first token.
    assert seen[1] > before
    assert first.committed[len(short[0]) :] == alone(huginn_mini, short[0], **settings)


def test_streaming(huginn_mini, short):
    settings = WAVES | {"max_new_tokens": 10, "seed": 4}
    streamer = Recorder()
    with huginn_mini.continuous_batching_context_manager() as manager:
        name = manager.add_request(
            short[0], "mine", streaming=True, record_timestamps=True, streamer=streamer, **settings
        )
        results = list(manager.request_id_iter("mine"))
    text = alone(huginn_mini, short[0], **settings)
    assert name == "mine" and len(results) > 2
    for result, longer in pairwise(results):
        assert result.generated_tokens == longer.generated_tokens[: len(result.generated_tokens)]
        assert not result.is_finished()
    last = results[-1]
    assert last.is_finished() and last.generated_tokens == text
    assert last.timestamps == sorted(last.timestamps) and len(last.timestamps) == len(text)
    assert last.created_time <= last.lifespan[0] <= last.timestamps[0] <= last.lifespan[1]
    assert streamer.committed == short[0] + text and streamer.ended == 1 and streamer.drafts


def test_a_handler_on_an_event_loop(huginn_mini, short):
    settings = WAVES | {"max_new_tokens": 8, "seed": 4}

    async def listen():
        seen, done = [], asyncio.Event()

        def callback(result):
            seen.append(result)
            if result.is_finished():
                done.set()

        with huginn_mini.continuous_batching_context_manager() as manager:
            name = manager.add_request(short[0], streaming=True, **settings)
            manager.register_result_handler(name, callback)
            await asyncio.wait_for(done.wait(), 60)
        return seen

    seen = asyncio.run(listen())
    assert seen[-1].generated_tokens == alone(huginn_mini, short[0], **settings)


def test_several_sequences_of_a_prompt(huginn_mini, short):
    settings = WAVES | {"max_new_tokens": 6, "do_sample": True, "num_return_sequences": 3}
    results = huginn_mini.generate_batch(short[:2], seed=7, **settings)
    assert list(results) == [f"req_{n}{child}" for n in (0, 1) for child in ("__child#0", "__child#1", "")]
    for number, prompt in enumerate(short[:2]):
        rows = huginn_mini.generate(torch.tensor([prompt]), seed=7 + 3 * number, **settings)
        mine = list(results.values())[3 * number : 3 * number + 3]
        assert [prompt + result.generated_tokens for result in mine] == rows.tolist()


def test_the_seed_is_drawn_as_in_generate(huginn_mini, short):
    settings = WAVES | {"max_new_tokens": 8, "do_sample": True}
    given = [prompt[:7] for prompt in short[:3]]
    torch.manual_seed(5)
    rows = huginn_mini.generate(torch.tensor(given), **settings)
    torch.manual_seed(5)
    results = huginn_mini.generate_batch(given, **settings)
    assert [prompt + r.generated_tokens for prompt, r in zip(given, results.values(), strict=True)] == rows.tolist()


def test_probabilities(huginn_mini, short):
    settings = SETTINGS["lossless"] | {"max_new_tokens": 5, "seed": 0, "do_sample": True, "temperature": 0.8}
    config = ContinuousBatchingConfig(return_logprobs=True, max_requests_per_batch=2)
    (result,) = huginn_mini.generate_batch(short[:1], continuous_batching_config=config, **settings).values()
    output = huginn_mini.generate(torch.tensor(short[:1]), **settings, return_dict_in_generate=True, output_scores=True)
    expected = [
        float(scores[0].log_softmax(-1)[token])
        for scores, token in zip(output.scores, result.generated_tokens, strict=True)
    ]
    assert result.logprobs == pytest.approx(expected, abs=1e-4)


def test_stops(bundled):
    """EOS and stop strings end a request exactly where they end it alone; its seat is taken at once."""
    model, tokenizer = bundled
    texts = ["Q: Start at 7 + 3 * 3. Last digit?\nA:", "Q: Start at 2 + 3. Last digit?\nA:"]
    given = [tokenizer(text).input_ids for text in texts]
    for more in ({"max_new_tokens": 60}, {"max_new_tokens": 60, "stop_strings": ["="], "tokenizer": tokenizer}):
        settings = {"sampler_preset": "fast", **more}
        results = model.generate_batch(given, seed=0, max_batch_size=1, **settings)
        for number, (prompt, result) in enumerate(zip(given, results.values(), strict=True)):
            assert result.generated_tokens == alone(model, prompt, seed=number, **settings)
            assert 0 < len(result.generated_tokens) < 60


def test_processors_with_a_state_are_copied(huginn_mini, short):
    settings = WAVES | {"max_new_tokens": 6, "seed": 0}
    shared = Favours()
    results = huginn_mini.generate_batch(short[:3], logits_processor=LogitsProcessorList([shared]), **settings)
    assert not shared.seen
    for number, (prompt, result) in enumerate(zip(short, results.values(), strict=False)):
        own = LogitsProcessorList([Favours()])
        expected = alone(huginn_mini, prompt, logits_processor=own, **settings | {"seed": number})
        assert result.generated_tokens == expected


def test_paged_is_generate_batch(huginn_mini, short):
    given = left_pad([short[0][:5], short[1][:9]], pad=0)
    settings = WAVES | {"max_new_tokens": 6, "seed": 2}
    rows = huginn_mini.generate(**given, cache_implementation="paged", **settings)
    assert rows.shape == (1, 2, 9 + 6)
    assert rows[0].tolist() == huginn_mini.generate(**given, **settings).tolist()


def test_one_request_fails_alone(huginn_mini, short):
    """A processor, a criterion or a streamer that raises; a hook ends the requests that share it."""

    class Bad(Recorder):
        def put(self, value):
            super().put(value)
            if len(self.committed) > len(short[0]) + 3:
                raise OSError("the pipe is broken")

    def criterion(input_ids, scores, **kwargs):
        if input_ids.shape[1] > len(short[0]) + 2:
            raise KeyError("not this")
        return torch.zeros(1, dtype=torch.bool)

    settings = WAVES | {"max_new_tokens": 12, "seed": 1}
    broken = LogitsProcessorList([Raises(len(short[0]) + 2)])
    bad = Bad()
    with huginn_mini.continuous_batching_context_manager() as manager, manager.pause():
        good = [manager.add_request(prompt, **settings) for prompt in short]
        failing = [
            manager.add_request(short[0], logits_processor=broken, **settings),
            manager.add_request(short[0], streamer=bad, **settings),
            manager.add_request(short[0], stopping_criteria=[criterion], **settings),
        ]
    failed = [manager.get_result(name) for name in failing]
    text = alone(huginn_mini, short[0], **settings)
    for result, count, words in zip(failed, (2, 4, 3), ("no more", "pipe", "not this"), strict=True):
        assert result.status == RequestStatus.FAILED and words in result.error
        assert result.generated_tokens == text[:count]
    assert bad.ended == 0
    for prompt, name in zip(short, good, strict=True):
        assert manager.get_result(name).generated_tokens == alone(huginn_mini, prompt, **settings)
    assert manager.stats.failed == 3 and manager.stats.requests == 7


def test_a_hook_that_raises_ends_those_that_share_it(huginn_mini, short):
    from hf_diffusion_forcing import ExitCriterion

    class Broken(ExitCriterion):
        def __call__(self, refinement):
            raise ZeroDivisionError("no verdict")

    hook, settings = Broken(), WAVES | {"max_new_tokens": 6, "seed": 1}
    with huginn_mini.continuous_batching_context_manager() as manager, manager.pause():
        bad = [manager.add_request(prompt, **settings, exit_criterion=hook) for prompt in short[:2]]
        good = manager.add_request(short[0], **settings)
    assert all("no verdict" in manager.get_result(name).error for name in bad)
    assert manager.get_result(good).generated_tokens == alone(huginn_mini, short[0], **settings)


@pytest.mark.parametrize("name", ["fast", "lossless", "adaptive", "autoregressive"])
def test_weights_that_are_not_numbers_end_every_request(tiny, name):
    with torch.no_grad():
        tiny.transformer.wte.weight.fill_(float("nan"))
    results = tiny.generate_batch([[3, 1, 4], [1, 5], [9, 2, 6, 5]], max_new_tokens=5, seed=0, **SETTINGS[name])
    assert [len(result.generated_tokens) for result in results.values()] == [5, 5, 5]


def test_cancelling(huginn_mini, short):
    """Where it waits, where its prompt is read, and where it is decoded."""
    settings = WAVES | {"max_new_tokens": 200, "seed": 1}
    with huginn_mini.continuous_batching_context_manager(max_batch_size=2) as manager:
        first = manager.add_request(short[0], streaming=True, **settings)
        manager.get_result(first)
        second = manager.add_request(short[1], **settings)
        third = manager.add_request(short[2], **settings | {"max_new_tokens": 5})
        fourth = manager.add_request(short[3], **settings)
        with manager.pause():
            for name in (second, fourth, first, second, "unknown"):
                manager.cancel_request(name)
        *_, last = manager.request_id_iter(first)
        cancelled = [manager.get_result(second), manager.get_result(fourth), last]
        assert all(result.status == RequestStatus.FAILED and "cancelled" in result.error for result in cancelled)
        assert 0 < len(last.generated_tokens) < 200 and cancelled[1].generated_tokens == []
        expected = alone(huginn_mini, short[2], **settings | {"max_new_tokens": 5})
        assert manager.get_result(third).generated_tokens == expected
        with manager.pause():
            assert not manager._engine.members


def test_starting_and_stopping(huginn_mini, short):
    settings = WAVES | {"max_new_tokens": 6, "seed": 1}
    text = alone(huginn_mini, short[0], **settings)
    with no_thread_left():
        manager = huginn_mini.init_continuous_batching()
        name = manager.add_request(short[0], **settings)
        assert not manager.is_running() and manager.get_result(name) is None
        with pytest.raises(RuntimeError, match="start"), manager.pause():
            pass
        manager.start()
        assert manager.is_running()
        with manager.pause(), pytest.raises(RuntimeError, match="pause"):
            manager.stop()
        manager.stop()  # finishes what is there
        assert not manager.is_running()
        assert [result.generated_tokens for result in manager] == [text]
        manager.start()
        name = manager.add_request(short[0], **settings | {"max_new_tokens": 400})
        manager.stop(hard_stop=True)
        assert "stopped" in manager.get_result(name).error
        with pytest.raises(RuntimeError, match="stop"):
            manager.add_request(short[0], **settings)
        manager.destroy()
    with no_thread_left(), pytest.raises(KeyError), huginn_mini.continuous_batching_context_manager() as manager:
        manager.add_request(short[0], **settings | {"max_new_tokens": 400})
        raise KeyError("of the caller")


def test_a_manager_that_stays(huginn_mini, short):
    settings = WAVES | {"max_new_tokens": 4, "seed": 1}
    try:
        first = huginn_mini.generate_batch(short[:1], persistent_manager=True, **settings)
        again = huginn_mini.generate_batch(short[:1], persistent_manager=True, **settings)
    finally:
        huginn_mini.destroy_cached_continuous_batching_manager()
    assert [*first, *again] == ["req_0", "req_1"]
    assert first["req_0"].generated_tokens == again["req_1"].generated_tokens


def test_refusals(huginn_mini, short):
    """Bad requests and limits are refused before anything is decoded, with what to do."""
    manager = huginn_mini.init_continuous_batching(max_queue_size=2, max_cache_bytes=4_000_000)
    settings = WAVES | {"max_new_tokens": 4}
    for prompt, keywords, error, words in (
        ([], {}, ValueError, "empty"),
        ([[1, 2], [3, 4]], {}, ValueError, "one prompt"),
        (["a"], {}, TypeError, "list of ints"),
        ([10_000], {}, ValueError, "vocabulary"),
        (short[0], {"wavefrnt": 3}, ValueError, "wavefront"),
        (short[0], {"num_beams": 2}, ValueError, "beam"),
        (short[0], {"sampler": False, "num_beams": 2}, ValueError, "beam"),
        (short[0], {"sampler": "autoregressive", "guidance_scale": 2.0}, ValueError, "guidance_scale"),
        (short[0], {"return_trace": True, "return_dict_in_generate": True}, ValueError, "return_trace"),
        (short[0], {"max_new_tokens": 4000}, ValueError, "exceeds the context"),
        (short[0], {"max_new_tokens": 800}, ValueError, "max_cache_bytes"),
    ):
        own = settings if keywords.get("sampler", True) is True else {"max_new_tokens": 4}
        with pytest.raises(error, match=words):
            manager.add_request(prompt, **own | keywords)
    manager.add_request(short[0], "a", **settings)
    with pytest.raises(ValueError, match="in use"):
        manager.add_request(short[0], "a", **settings)
    manager.add_request(short[0], **settings)
    with pytest.raises(queue.Full, match="max_queue_size=2"):
        manager.add_request(short[0], **settings)
    with pytest.raises(ValueError, match="streamer"):
        manager.add_requests(short, streamer=Recorder(), **settings)
    for name in ("max_batch_size", "max_batch_tokens", "max_cache_bytes"):
        with pytest.raises(ValueError, match=name):
            huginn_mini.init_continuous_batching(**{name: 0})
    with pytest.raises(ValueError, match="page_size=128"):
        huginn_mini.init_continuous_batching(continuous_batching_config=ContinuousBatchingConfig(page_size=128))
    assert huginn_mini.generate_batch([]) == {}
    manager.destroy()


def test_too_little_memory_for_all_at_a_time(huginn_mini, short):
    """Requests wait for the bytes of those before them, and the cache never takes more."""
    settings = SETTINGS["adaptive"] | {"max_new_tokens": 12}
    requests = []
    for number, prompt in enumerate(short * 2):
        call = prepare(huginn_mini, prompt, None, settings | {"seed": number})
        requests.append(request_of(str(number), call, False, False, False))
    limits = Limits(rows=8, positions=64, keeps_prefixes=False)
    needed = Engine(huginn_mini, limits)._load(None, requests[3]).cache_bytes
    limits.cache_bytes = int(2.5 * needed)
    engine = Engine(huginn_mini, limits)
    for request in requests:
        engine.add(request)
    most, rows = [], []
    while engine.has_work:
        engine.admit()
        rows.append(len(engine.members))
        engine.turn()
        most.append(engine.cache_bytes)
    assert max(most) <= limits.cache_bytes and 1 < max(rows) <= 4
    assert engine.cache_bytes == 0
    for number, request in enumerate(requests):
        expected = alone(huginn_mini, (short * 2)[number], **settings, seed=number)
        assert request.tokens == expected


def test_the_budget_of_positions_follows_the_cost_curve():
    """At least 64; more where a position is still getting cheaper."""
    steep = CostCurve((1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0), (0.0,) * 7)
    assert affordable_positions(steep) == 64
    # 2 seconds and 1/16 a position: at 256 the 2 seconds are more than a tenth of it, at 512 less.
    growing = CostCurve((1.0, 1.0, 1.0, 1.0, 1.0, 4.0, 6.0), (0.0,) * 7)
    assert affordable_positions(growing) == 512
    free = CostCurve((1.0,) * 7, (0.0,) * 7)
    assert affordable_positions(free) == 4096


def test_callers_on_several_threads(huginn_mini, short):
    settings = WAVES | {"max_new_tokens": 8}
    texts = {}

    def ask(number):
        name = manager.add_request(short[number % 4], seed=number, **settings)
        texts[number] = manager.get_result(name).generated_tokens

    with huginn_mini.continuous_batching_context_manager() as manager:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, text in texts.items():
        assert text == alone(huginn_mini, short[number % 4], seed=number, **settings)

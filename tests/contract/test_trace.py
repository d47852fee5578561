"""The trace of a call: replayed it is the call's text, summed it is the call's statistics, and it changes nothing."""

import gc
import json
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from hf_diffusion_forcing import Trace, WaveTick
from hf_diffusion_forcing.generation import trace as trace_module
from hf_diffusion_forcing.generation.trace import as_bits, from_bits
from support import left_pad, random_model
from support.matrix import cases
from support.streamers import Recorder

ROWS = [[3, 1, 4], [1, 5, 9, 2, 6], [5], [3, 5, 8, 9, 7, 9], [3, 2]]
SAMPLERS = {
    "adaptive": {"exit_threshold": 0.1},
    "diffusion_forcing": {"exit_threshold": 0.1, "inner_recurrence": 1, "headway": 2, "wavefront": 6},
    "speculative_wavefront": {"draft_depth": 1, "second_draft_depth": 2},
}
TRACED = {"return_trace": True, "return_dict_in_generate": True}


def traced(model, rows, sampler, **kwargs):
    """The output with a trace, after checking that the text is the one without."""
    inputs = left_pad(rows)
    call = TRACED | {"return_trace": kwargs.pop("return_trace", True)}
    common = {"sampler": sampler, "seed": 3, "pad_token_id": 0} | SAMPLERS[sampler] | kwargs
    output = model.generate(**inputs, **common, **call)
    assert model.generate(**inputs, **common).tolist() == output.sequences.tolist()
    return output


def check_laws(output, prompt_length):
    trace, stats = output.trace, output.stats
    # Replaying what was committed gives the text.
    for row, count in enumerate(stats.tokens_committed):
        text = output.sequences[row, prompt_length : prompt_length + count].tolist()
        assert trace.new_tokens(row) == text == [each.token for each in trace.tokens(row)]
        at = trace.starts[row]
        for wave in trace.of_row(row):
            assert wave.start == at
            at += len(wave.committed)
            assert wave.tokens[0] == text[wave.start - trace.starts[row]]
    # Counts are the statistics.
    core_passes = {wave.tick: wave.core_passes for wave in trace.waves}
    assert list(core_passes) == list(range(1, stats.ticks + 1))
    assert sum(core_passes.values()) == stats.core_passes
    assert sum(wave.core_passes * wave.width for wave in trace.waves) == stats.positions_refined
    assert sum(sum(wave.discarded) for wave in trace.waves) == stats.wasted_recurrences
    for wave in trace.waves:
        assert wave.width == len(wave.recurrences) == len(wave.predictions) == len(wave.exit_values)
        assert wave.core_passes <= wave.recurrences[0] <= trace.budget
        assert wave.committed == wave.predictions[: len(wave.committed)]
        if trace.criterion is None:
            assert max(wave.recurrences) <= trace.budget
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict(), allow_nan=False))) == trace


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("rows", cases([ROWS, [[5, 9, 2]]], keep=[ROWS]), ids=["batch", "alone"])
def test_laws(tiny, sampler, rows):
    """Rows of a batch end at their own tokens, mid-wave, and leave it."""
    free = tiny.generate(**left_pad(rows), sampler=sampler, **SAMPLERS[sampler], seed=3, max_new_tokens=14)
    width = max(map(len, rows))
    end = free[0, width + 9].item()
    output = traced(tiny, rows, sampler, max_new_tokens=14, eos_token_id=end)
    check_laws(output, width)
    if len(rows) > 1:
        assert len(set(output.stats.tokens_committed)) > 1


@given(
    sampler=st.sampled_from(list(SAMPLERS)),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    eos=st.integers(0, 60),
    seed=st.integers(0, 2**31),
    max_new_tokens=st.integers(1, 12),
    criterion=st.sampled_from(["kl", "token_stability", "fixed", "latent_acceleration", {"any": ["kl", "fixed"]}]),
    wavefront=st.integers(1, 9),
)
def test_laws_for_any_call(sampler, lengths, eos, seed, max_new_tokens, criterion, wavefront):
    generator = torch.manual_seed(seed)
    rows = [torch.randint(0, 61, (length,), generator=generator).tolist() for length in lengths]
    kwargs = {"seed": seed, "eos_token_id": eos, "max_new_tokens": max_new_tokens, "do_sample": True, "top_k": 0}
    if sampler != "speculative_wavefront":
        kwargs |= {"exit_criterion": criterion, "exit_threshold": None}
    if sampler == "diffusion_forcing":
        kwargs |= {"wavefront": wavefront, "inner_recurrence": 1 + wavefront % 3}
    check_laws(traced(random_model(), rows, sampler, **kwargs), max(lengths))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_rows_trace_does_not_depend_on_its_batch(tiny, sampler):
    call = {"sampler": sampler, "max_new_tokens": 8} | SAMPLERS[sampler] | TRACED
    together = tiny.generate(**left_pad(ROWS), seed=3, **call).trace
    for row, prompt in enumerate(ROWS):
        alone = tiny.generate(torch.tensor([prompt]), seed=3 + row, **call).trace
        for mine, theirs in zip(together.of_row(row), alone.of_row(0), strict=True):
            assert (mine.start, mine.tokens, mine.predictions) == (theirs.start, theirs.tokens, theirs.predictions)
            assert (mine.recurrences, mine.committed) == (theirs.recurrences, theirs.committed)
            assert [value is None for value in mine.exit_values] == [value is None for value in theirs.exit_values]
            values = [pair for pair in zip(mine.exit_values, theirs.exit_values, strict=True) if None not in pair]
            assert all(a == pytest.approx(b, rel=1e-3) for a, b in values)


def test_exit_values_decide_what_freezes(huginn_mini, prompts):
    """What is committed below its budget had a value below the threshold."""
    inputs = left_pad(prompts)
    for sampler in ("adaptive", "diffusion_forcing"):
        trace = huginn_mini.generate(**inputs, sampler=sampler, num_steps=16, max_new_tokens=24, **TRACED).trace
        assert (trace.criterion, trace.threshold) == ("latent_difference", 0.03)
        early = 0
        for wave in trace.waves:
            assert all(value is None or value >= 0 for value in wave.exit_values)
            for value, recurrences in zip(wave.exit_values[: len(wave.committed)], wave.recurrences, strict=False):
                if recurrences + wave.core_passes <= trace.budget:
                    early += 1
                    assert value < trace.threshold
            if not wave.committed and wave.recurrences[0] < trace.budget:
                assert wave.exit_values[0] >= trace.threshold
        assert early


def test_criteria_without_a_value_leave_none(tiny):
    for criterion in ("token_stability", {"any": ["kl", "latent_difference"]}):
        output = traced(
            tiny, ROWS, "diffusion_forcing", exit_criterion=criterion, exit_threshold=None, max_new_tokens=8
        )
        assert {value for wave in output.trace.waves for value in wave.exit_values} == {None}


def test_a_criterion_of_the_callers_may_set_values(tiny):
    from hf_diffusion_forcing import ExitCriterion

    class Mine(ExitCriterion):
        def __init__(self, squeeze):
            self.squeeze = squeeze

        def __call__(self, refinement):
            refinement.exit_values = refinement.steps.float()[:, : self.squeeze]
            return refinement.steps > 2

    call = {"exit_threshold": None, "max_new_tokens": 6}
    trace = traced(tiny, [[3, 1]], "diffusion_forcing", exit_criterion=Mine(None), **call).trace
    assert trace.criterion == "Mine" and trace.threshold is None
    for wave in trace.waves:
        assert wave.exit_values == [count - wave.core_passes for count in wave.recurrences]
    with pytest.raises(ValueError, match="one value per position"):
        traced(tiny, [[3, 1]], "diffusion_forcing", exit_criterion=Mine(1), **call)


def test_an_abandoned_tick_is_told_apart(tiny):
    """A draft that overflows makes the tick run again with the front alone: both are counted, one commits."""
    call = {"sampler": "diffusion_forcing", "seed": 0, "max_new_tokens": 20} | {
        "wavefront": 6,
        "exit_threshold": 0.05,
        "inner_recurrence": 1,
    }
    prompt = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    free = tiny.generate(prompt, **call, **TRACED)
    text = free.sequences[0].tolist()
    drafted = {token for wave in free.trace.waves for token in wave.tokens} - set(text)
    with torch.no_grad():
        tiny.lm_head.weight = torch.nn.Parameter(tiny.lm_head.weight.clone())
        tiny.transformer.wte.weight[sorted(drafted)] = float("nan")
    output = tiny.generate(prompt, **call, **TRACED)
    assert any(wave.abandoned and None in wave.exit_values for wave in output.trace.waves)
    check_laws(output, prompt.shape[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_are_the_states_of_the_waves(tiny, sampler):
    output = traced(tiny, ROWS, sampler, max_new_tokens=8, return_trace="latents")
    plain = traced(tiny, ROWS, sampler, max_new_tokens=8).trace
    assert output.trace == plain and plain.waves[0].latents is None
    for wave in output.trace.waves:
        assert wave.latents.shape == (wave.width, 32) and wave.latents.isfinite().all()
    if sampler == "speculative_wavefront":
        return
    # The latent difference of a position's states a tick apart is the exit value of the later.
    known, compared = {}, 0
    for wave in output.trace.waves:
        for place, state in enumerate(wave.latents):
            key = wave.row, wave.start + place
            if key in known:
                moved = torch.linalg.vector_norm(state - known[key]) / torch.linalg.vector_norm(state)
                assert wave.exit_values[place] == pytest.approx(moved.item(), rel=1e-3)
                compared += 1
            known[key] = state
    assert compared > 20


def test_latents_of_the_lossless_wavefront_are_those_of_the_full_depth_model(tiny):
    """The last state of a committed position is what autoregression computes there."""
    output = traced(tiny, [ROWS[1]], "speculative_wavefront", max_new_tokens=8, return_trace="latents")
    states = tiny(output.sequences, seeds=torch.tensor([3])).latents[0]
    committed = [wave for wave in output.trace.waves if wave.committed]
    assert len(committed) == 7
    for wave in committed:
        torch.testing.assert_close(wave.latents[0], states[wave.start], rtol=1e-3, atol=1e-4)


def test_streaming_and_a_conversation(huginn_mini, prompts):
    call = {"sampler": "diffusion_forcing", "num_steps": 8, "seed": 0, "max_new_tokens": 12}
    streamer = Recorder()
    first = huginn_mini.generate(torch.tensor([prompts[0]]), **call, **TRACED, streamer=streamer)
    assert streamer.committed == prompts[0] + first.trace.new_tokens()
    # The new ids alone, with the cache of what came before.
    ids = torch.cat((first.sequences[:, -1:], torch.tensor([prompts[1]])), dim=1)
    columns = first.sequences.shape[1] - 1 + ids.shape[1]
    second = huginn_mini.generate(
        ids,
        cache=first.cache,
        attention_mask=torch.ones(1, columns, dtype=torch.long),
        **call,
        **TRACED,
    )
    assert second.trace.starts == [columns]
    check_laws(second, ids.shape[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_trace_waits_for_the_device_no_more_often(tiny, monkeypatch, sampler):
    """Exit values come to the host with what a tick reads anyway."""
    calls = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: calls.append(tensor.dtype) or tolist(tensor))
    counts = []
    for return_trace in (False, True):
        calls.clear()
        call = SAMPLERS[sampler] | TRACED | {"return_trace": return_trace}
        trace = tiny.generate(**left_pad(ROWS), sampler=sampler, seed=3, max_new_tokens=8, **call).trace
        # Those in float32 read a tensor that is on the host.
        counts.append(len(calls) - calls.count(torch.float32))
    assert counts[0] == counts[1] > 7
    assert calls.count(torch.float32) == (len(trace.waves) if trace.criterion else 0)


def test_no_trace_unless_asked(tiny):
    output = tiny.generate(torch.tensor([[1, 2]]), sampler="diffusion_forcing", return_dict_in_generate=True)
    assert output.trace is None


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"return_dict_in_generate": False}, ValueError, "return_dict_in_generate=True"),
        ({"sampler": "autoregressive"}, ValueError, "sampler='autoregressive', which has no ticks"),
        ({"sampler": None}, ValueError, "sampler=False"),
        ({"return_trace": 1}, TypeError, "return_trace=1"),
        ({"return_trace": "states"}, ValueError, "return_trace='states' is unknown"),
        ({"generation_config": GenerationConfig(return_trace=True), "return_trace": False}, ValueError, "itself"),
        ({"sampler_config": {"return_trace": True}}, ValueError, "no setting 'return_trace'"),
        ({"return_trace": None, "return_traces": True}, ValueError, "return_trace"),
    ],
)
def test_bad_calls(tiny, monkeypatch, kwargs, error, message):
    monkeypatch.setattr(type(tiny), "forward", lambda *_, **__: pytest.fail("computed"))
    call = {"sampler": "diffusion_forcing"} | TRACED | kwargs
    with pytest.raises(error, match=message):
        tiny.generate(torch.tensor([[1, 2]]), **call)


def test_a_trace_is_not_stored_with_the_model(tiny, tmp_path):
    traced(tiny, [[3, 1]], "diffusion_forcing", max_new_tokens=4)
    tiny.save_pretrained(tmp_path)
    assert "trace" not in (tmp_path / "generation_config.json").read_text()


# --- files and memory ---


def test_a_file_holds_all_but_latents(tiny, tmp_path):
    trace = traced(tiny, ROWS, "diffusion_forcing", max_new_tokens=8, return_trace="latents").trace
    path = tmp_path / "trace.json"
    trace.save(path)
    loaded = Trace.load(path)
    assert loaded == trace and loaded.waves[0].latents is None
    assert [each.name for each in tmp_path.iterdir()] == ["trace.json"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda values: [values], TypeError, "Trace needs a dict"),
        (lambda values: values | {"colour": 1}, ValueError, "no 'colour'"),
        (lambda values: {"sampler": "adaptive"}, ValueError, "needs 'budget'"),
        (lambda values: values | {"waves": [3]}, TypeError, "WaveTick needs a dict"),
        (lambda values: values | {"waves": [{"tick": 0}]}, ValueError, "WaveTick needs"),
        (lambda values: values["waves"][0]["tokens"].append(1) or values, ValueError, "lists of different lengths"),
    ],
)
def test_what_is_no_trace_is_refused(tiny, tmp_path, change, error, message):
    values = traced(tiny, [[3, 1]], "adaptive", max_new_tokens=3).trace.to_dict()
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(change(values)))
    with pytest.raises(error, match=f"trace.json is not a trace: .*{message}"):
        Trace.load(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a trace"):
        Trace.load(path)


def wave_of(width, tick=0):
    """As large as they come: no id, count or value that Python holds once for all."""
    big = 100_000 * (tick + 1)
    return WaveTick(
        tick=big,
        row=big + 1,
        start=big + 2,
        core_passes=big + 3,
        tokens=[big + 4 + i for i in range(width)],
        recurrences=[big + 500 + i for i in range(width)],
        predictions=[big + 1000 + i for i in range(width)],
        exit_values=[big + 0.5 + i for i in range(width)],
        committed=[big + 1500],
    )


@pytest.mark.parametrize("width", [1, 8, 32])
def test_a_wave_takes_no_more_than_is_said(width):
    gc.collect()
    tracemalloc.start()
    waves = [wave_of(width, tick) for tick in range(200)]
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken <= sum(wave.nbytes for wave in waves) <= 3 * taken


def test_a_trace_stops_where_it_is_full(tiny, monkeypatch):
    whole = traced(tiny, ROWS, "diffusion_forcing", max_new_tokens=12).trace
    assert whole.unrecorded == 0
    held = sum(wave.nbytes for wave in whole.waves)
    monkeypatch.setattr(trace_module, "MAX_BYTES", held // 2)
    output = traced(tiny, ROWS, "diffusion_forcing", max_new_tokens=12)
    part = output.trace
    assert sum(wave.nbytes for wave in part.waves) <= held // 2
    assert part.waves == whole.waves[: len(part.waves)]
    assert len(part.waves) + part.unrecorded == len(whole.waves)
    assert part.new_tokens(0) == whole.new_tokens(0)[: len(part.new_tokens(0))]
    # Latents are counted.
    latents = traced(tiny, ROWS, "diffusion_forcing", max_new_tokens=12, return_trace="latents").trace
    assert latents.unrecorded > part.unrecorded


def test_values_travel_as_bits():
    values = torch.tensor([[0.03, 1e-38, -2.5, float("inf"), float("nan")]], dtype=torch.float32)
    back = from_bits(as_bits(values)[0].tolist())
    assert back == [*values[0, :3].tolist(), None, None]
    assert from_bits(as_bits(values[:, :1].bfloat16())[0].tolist()) == values[:, :1].bfloat16().float()[0].tolist()

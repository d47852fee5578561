"""`compile=True`: ticks of few shapes that torch.compile takes in one graph, with the texts of the others.

The backend is "eager" unless a test says otherwise: it proves the graph, and takes a fraction of the time.
"""

import copy
import gc
import shutil
import weakref
from itertools import product

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import AutoModelForCausalLM

from hf_diffusion_forcing import (
    DiffusionForcingConfig,
    RavenForCausalLM,
    SpeculativeWavefrontConfig,
    enable_recurrent_depth,
    pack_linear_weights,
)
from hf_diffusion_forcing.cache.static import bucket
from hf_diffusion_forcing.compat import CACHE, with_own_code
from hf_diffusion_forcing.generation import compiled
from hf_diffusion_forcing.generation.samplers import SAMPLERS
from hf_diffusion_forcing.serving.engine import Engine
from hf_diffusion_forcing.serving.request import prepare, request_of
from hf_diffusion_forcing.serving.scheduler import Limits
from support import FAMILIES, INJECTED, left_pad, tiny_config
from support.batching import alone
from support.heads import with_start_head
from support.looped_adapter import LoopedAdapter
from support.looped_model import LoopedConfig, LoopedLM
from support.matrix import cases

ROWS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4]]
KEPT = {"return_dict_in_generate": True, "output_logits": True, "pad_token_id": 0, "eos_token_id": None, "seed": 7}
EVERY = {
    "autoregressive": {},
    "adaptive": {"exit_threshold": 0.1},
    "diffusion_forcing": {"wavefront": 3, "inner_recurrence": 2},
    "speculative_wavefront": {"draft_depth": 2, "draft_tokens": 2},
}
SAMPLED = {"do_sample": True, "top_k": 0}


@pytest.fixture(autouse=True)
def counter(monkeypatch):
    """Counts the compilations of a test, which begins with none."""
    counter = CompileCounterWithBackend("eager")
    monkeypatch.setattr(compiled, "BACKEND", counter)
    compiled._COMPILED.clear()
    torch._dynamo.reset()
    yield counter
    compiled._COMPILED.clear()
    torch._dynamo.reset()


def assert_equal(model, inputs, **settings):
    """Texts are equal, and logits up to rounding; returns the output of the compiled call."""
    expected, got = (model.generate(**inputs, **KEPT | settings, compile=each) for each in (False, True))
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(expected.logits), atol=1e-4, rtol=1e-4)
    return got


def bucket_of(x):
    return bucket(len(x))


def load(name):
    return AutoModelForCausalLM.from_pretrained(FAMILIES[name]).eval()


@pytest.mark.parametrize("sampler", [*EVERY, "adaptive learned start", "diffusion_forcing learned start"])
def test_every_sampler(tiny, counter, sampler):
    """Of a ragged batch, greedy and sampled; the second call compiles nothing."""
    name, *learned = sampler.split(maxsplit=1)
    settings = {"sampler": name, "num_steps": 4, "max_new_tokens": 9} | EVERY[name]
    settings |= {"learned_start": True} if learned else {}
    model = with_start_head(tiny)
    assert_equal(model, left_pad(ROWS), **settings)
    count = counter.frame_count
    assert 1 <= count <= 6
    assert_equal(model, left_pad(ROWS), **settings)
    assert counter.frame_count == count
    assert_equal(model, left_pad(ROWS), **settings, **SAMPLED)


@pytest.mark.parametrize(
    ("name", "sampler"),
    cases(
        [
            (name, sampler)
            for name, sampler in product(FAMILIES, EVERY)
            if name in INJECTED or not SAMPLERS[sampler].needs_injected_embedding
        ],
        keep=[("parcae", "diffusion_forcing"), ("ouro", "adaptive")],
    ),
)
def test_every_family(name, sampler):
    model = load(name)
    settings = {"sampler": sampler, "num_steps": 4, "max_new_tokens": 8} | EVERY[sampler]
    for inputs in ({"input_ids": torch.tensor(ROWS[:1])}, left_pad(ROWS)):
        for choice in ({}, SAMPLED):
            assert_equal(model, inputs, **settings, **choice)


@pytest.mark.parametrize("autocast", [False, True])
def test_lower_precision(tiny, autocast):
    """Keys and values are float32 on a CPU, so entries and states differ in dtype."""
    model = tiny if autocast else tiny.to(torch.bfloat16)
    settings = KEPT | {"sampler": "adaptive", "num_steps": 4, "max_new_tokens": 2}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, got = (model.generate(**left_pad(ROWS), **settings, compile=each) for each in (False, True))
    # The first token comes from the prompt, so both have read the same.
    torch.testing.assert_close(got.logits[1], expected.logits[1], atol=0.05, rtol=0.05)


@torch.inference_mode()
def test_inference_mode(tiny):
    assert_equal(tiny, left_pad(ROWS), sampler="adaptive", num_steps=4, max_new_tokens=5)


def test_bundled_checkpoint(bundled):
    model, tokenizer = bundled
    inputs = tokenizer(["Q: 12 + 30\nA:", "Q: 7 + 5 - 2\nA:"], return_tensors="pt", padding=True)
    assert_equal(model, inputs, sampler_preset="fast", wavefront=4, max_new_tokens=12)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("sampler", [pytest.param("speculative_wavefront", marks=pytest.mark.full), "adaptive"])
def test_inductor(tiny, monkeypatch, sampler):
    """The backend that users get."""
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    settings = {"sampler": sampler, "num_steps": 4, "max_new_tokens": 9} | EVERY[sampler]
    assert_equal(tiny, left_pad(ROWS), **settings)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampler", EVERY)
def test_captured_graphs(tiny, monkeypatch, sampler):
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    inputs = {name: x.cuda() for name, x in left_pad(ROWS).items()}
    assert_equal(tiny.cuda(), inputs, sampler=sampler, num_steps=4, max_new_tokens=70, **EVERY[sampler])


def test_one_compilation_for_each_shape(counter):
    """A text that grows from 60 to 180 positions, in extents of 64, 128 and 256; more of it compiles nothing new."""
    model = RavenForCausalLM(tiny_config(n_layers_in_recurrent_block=1)).eval()
    model.config.block_size = 256
    ids = torch.arange(60)[None]
    for seed in (1, 2):
        settings = KEPT | {"sampler": "diffusion_forcing", "num_steps": 2, "wavefront": 2, "seed": seed}
        output = model.generate(ids, **settings, max_new_tokens=120, compile=True)
        widths, extents = {1, 2}, {64, 128, 256}
        assert output.cache.capacity == 256 and len(extents) <= counter.frame_count <= len(widths) * len(extents)
        if seed == 1:
            count = counter.frame_count
    assert counter.frame_count == count


def test_more_shapes_than_torch_compiles_of_one_function():
    for width in range(1, 12):
        function = torch.compile(with_own_code(bucket_of), backend="eager", fullgraph=True, dynamic=False)
        assert function(torch.zeros(width)) == bucket(width)


def test_rows_that_end_in_a_cache_of_another_call(tiny):
    """Rows end at different ticks; the cache they go on in was not made for compiled ticks."""
    inputs = left_pad(ROWS)
    first = tiny.generate(**inputs, **KEPT, sampler="adaptive", max_new_tokens=4)
    mask = torch.cat((inputs["attention_mask"], torch.ones(3, 4, dtype=torch.int64)), dim=1)
    settings = KEPT | {"sampler": "diffusion_forcing", "num_steps": 4, "wavefront": 2, "max_new_tokens": 12}

    def text(**changes):
        call = settings | changes | {CACHE: copy.deepcopy(first.cache)}
        return tiny.generate(first.sequences, attention_mask=mask, **call)

    ends = {"eos_token_id": text().sequences[0, -9].item()}
    expected, got = text(**ends), text(**ends, compile=True)
    assert torch.equal(got.sequences, expected.sequences) and len(set(got.stats.tokens_committed)) > 1


def test_continuous_batching(tiny):
    settings = {"sampler": "speculative_wavefront", "num_steps": 4, "draft_depth": 2, "max_new_tokens": 6, "seed": 3}
    expected, got = (
        [output.generated_tokens for output in tiny.generate_batch(ROWS, **settings, compile=each).values()]
        for each in (False, True)
    )
    assert got == expected and all(expected)


def test_seats_that_are_freed_between_ticks(tiny):
    """Three rows are padded to four while there is a kept fourth seat; it is freed before the fronts move on."""
    settings = {"sampler": "adaptive", "compile": True, "exit_threshold": 0.0, "num_steps": 8, "seed": 1}
    settings["prefill_chunk_size"] = 4  # otherwise no seat is kept
    requests = [
        request_of(str(number), prepare(tiny, row, None, settings | {"max_new_tokens": room}), False, False, False)
        for number, (row, room) in enumerate(zip([*ROWS, [8, 8, 8]], (6, 6, 6, 2), strict=True))
    ]
    engine = Engine(tiny, Limits(rows=4, positions=64))
    for request in requests:
        engine.add(request)
    for _ in range(100):
        engine.admit()
        engine.turn()
        if engine.groups[0].kept:
            break
    (group,) = engine.groups
    engine.turn()  # the pass of the three fronts is made
    assert len(group.requests) == 3 and group.cache.seats == 4
    group.forget(*group.kept)
    assert group.cache.seats == 3
    while engine.has_work:
        engine.turn()
    assert [request.error for request in requests] == [None] * 4
    for row, request in zip(ROWS, requests, strict=False):
        assert request.tokens == alone(tiny, row, **settings, max_new_tokens=6)


def test_a_model_is_not_kept_alive():
    model = RavenForCausalLM(tiny_config()).eval()
    model.generate(torch.tensor(ROWS[:1]), sampler="adaptive", max_new_tokens=3, compile=True)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_buckets():
    assert [bucket(count) for count in (1, 2, 3, 4, 5, 9)] == [1, 2, 4, 4, 8, 16]
    assert [bucket(count, 64) for count in (1, 64, 65, 128, 129, 300)] == [64, 64, 128, 128, 256, 512]


# --- what is refused, before anything is computed ---


def refused(model, message, **settings):
    def fail(*args):
        raise AssertionError("computed something")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=message):
        patch.setattr(type(model), "embed", fail)
        model.generate(torch.tensor(ROWS[:1]), **{"sampler": "adaptive", "compile": True} | settings)


def test_settings_that_do_not_fit(tiny):
    with pytest.raises(ValueError, match=r"exact=True is not possible with compile=True"):
        SpeculativeWavefrontConfig(exact=True, compile=True)
    with pytest.raises(ValueError, match=r"compile=True is not possible with kv_sharing='none'"):
        DiffusionForcingConfig(kv_sharing="none", compile=True)
    with pytest.raises(TypeError, match="compile="):
        DiffusionForcingConfig(compile="inductor")
    refused(tiny, "compile=True is not a setting of plain decoding", sampler=False)
    refused(tiny, "kv_sharing=2 and sampler='adaptive'", kv_sharing=2)
    assert DiffusionForcingConfig(compile=True).to_diff_dict() == {"compile": True}


def test_models_that_cannot_be_compiled(tiny, monkeypatch):
    hook = tiny.transformer.core_block[0].register_forward_hook(lambda module, args, output: None)
    refused(tiny, "compile=True is not possible with forward hooks inside the model")
    hook.remove()
    block = tiny.transformer.core_block[0]
    block.forward = block.forward
    refused(tiny, r"forward\(\) of a module has been replaced")
    del block.forward
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setenv("CXX", "no-such-compiler")
    refused(tiny, r"without a C\+\+ compiler \(no-such-compiler is not found\)")
    refused(pack_linear_weights(tiny), "packed weights: call unpack_linear_weights")


def test_an_adapter_says_that_it_can_be_compiled():
    torch.manual_seed(0)
    model = enable_recurrent_depth(LoopedLM(LoopedConfig()).eval(), LoopedAdapter)
    refused(model, r"compile=True is not possible with .*: set compiles_core = True in that class")
    type(model).compiles_core = True
    try:
        assert_equal(model, left_pad(ROWS), sampler="adaptive", max_new_tokens=5)
    finally:
        del type(model).compiles_core

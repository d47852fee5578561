"""What is put around `forward()` reaches the samplers, which call the model's parts."""

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from support import left_pad

BATCH = left_pad([[81, 58, 32, 68, 97, 110], [81, 58]])
SHORT = {"num_steps": 4, "seed": 0, "max_new_tokens": 8}
LAW_2 = {"sampler": "diffusion_forcing", "wavefront": 1, "inner_recurrence": 4}
FORCING = {"sampler": "diffusion_forcing", "wavefront": 8, "inner_recurrence": 2}
LOSSLESS = {"sampler": "speculative_wavefront", "draft_depth": 2}


@pytest.fixture
def prepared(huginn_mini):
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    yield accelerator.prepare(copy.deepcopy(huginn_mini))
    AcceleratorState._reset_state()


def dtypes(model, **settings):
    """The texts, and the dtypes a linear layer of the core computes in."""
    seen = []
    handle = model.transformer.core_block[0].mlp.fc.register_forward_hook(lambda m, a, y: seen.append(y.dtype))
    ids = model.generate(**BATCH, **SHORT, **settings).tolist()
    handle.remove()
    return ids, set(seen)


def check(model):
    """Every pass is in bfloat16, and the laws hold in it: passes of equal width round equally."""
    for settings, reference in (
        (LAW_2, {"kv_sharing": "last"}),
        ({"sampler": "adaptive", "exit_criterion": {"name": "fixed", "steps": 4}}, {"kv_sharing": "last"}),
    ):
        ids, seen = dtypes(model, **settings)
        expected, reference_seen = dtypes(model, sampler="autoregressive", **reference)
        assert ids == expected and seen == reference_seen == {torch.bfloat16}
    for settings in (FORCING, LOSSLESS):
        assert dtypes(model, **settings)[1] == {torch.bfloat16}


def test_accelerate_prepare_with_mixed_precision(prepared, huginn_mini):
    check(prepared)
    assert dtypes(huginn_mini, **FORCING)[1] == {torch.float32}


def test_an_autocast_context(huginn_mini):
    with torch.autocast("cpu", torch.bfloat16):
        check(huginn_mini)
        assert torch.is_autocast_enabled("cpu")


def test_a_cache_goes_from_one_to_the_other(prepared, huginn_mini):
    for first, second in ((prepared, huginn_mini), (huginn_mini, prepared)):
        cache = first.new_cache(8)
        text = first.generate(**BATCH, **SHORT, **FORCING, cache=cache)
        mask = torch.cat((BATCH["attention_mask"], torch.ones_like(text[:, 6:])), dim=-1)
        ids = second.generate(text, attention_mask=mask, **SHORT, **FORCING, cache=cache)
        assert ids.shape[1] == 22 and ids[:, :14].equal(text)


def test_the_look_at_forward_draws_nothing(prepared):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    prepared.generate(**BATCH, **SHORT, **FORCING)
    assert torch.random.get_rng_state().equal(state)


def test_a_compiled_forward_is_not_compiled_for_it(tiny):
    settings = {"sampler": "diffusion_forcing", "max_new_tokens": 4, "seed": 0}
    ids = torch.tensor([[3, 1, 4]])
    expected = tiny.generate(ids, **settings).tolist()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    tiny.forward = torch.compile(tiny.forward, backend=backend)
    assert tiny.generate(ids, **settings).tolist() == expected and not graphs


def test_a_hook_on_the_model_itself_is_warned_about_once(tiny, caplog):
    calls = []
    tiny.register_forward_hook(lambda module, args, output: calls.append(1))
    ids = torch.tensor([[3, 1, 4]])
    for _ in range(2):
        tiny.generate(ids, sampler="adaptive", max_new_tokens=3)
    assert not calls and caplog.text.count("The model has a forward hook, which sampler='adaptive' does not run") == 1
    tiny.generate(ids, sampler="autoregressive", max_new_tokens=3)
    assert len(calls) == 3

"""torch.compile and torch.export: one graph for training and for evaluation, at every depth."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensor
from transformers import Trainer

from hf_diffusion_forcing import (
    NanbeigeConfig,
    NanbeigeForCausalLM,
    OuroConfig,
    OuroForCausalLM,
    ParcaeConfig,
    ParcaeForCausalLM,
    RavenForCausalLM,
)
from support import left_pad, tiny_config
from support.matrix import cases
from support.training import few_steps

IDS = torch.randint(0, 61, (2, 11), generator=torch.manual_seed(0))
SEEDS = torch.tensor([1, 2])
OURO = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
RAVEN = {"n_layers_in_recurrent_block": 1, "n_layers_in_coda": 0, "mean_recurrence": 3, "mean_backprop_depth": 2}
PARCAE = {
    "vocab_size": 61,
    "n_embd": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "n_layers_in_prelude": 1,
    "n_layers_in_recurrent_block": 1,
    "n_layers_in_coda": 1,
    "mean_recurrence": 3,
    "mean_backprop_depth": 2,
    "block_size": 128,
}
SHAPES = {
    "huginn": lambda: RavenForCausalLM(tiny_config(**RAVEN)),
    "llama": lambda: RavenForCausalLM(tiny_config(**RAVEN, layout="llama", n_heads=4, num_key_value_heads=2)),
    "olmo": lambda: RavenForCausalLM(tiny_config(**RAVEN, layout="olmo")),
    "ouro": lambda: OuroForCausalLM(OuroConfig(**OURO)),
    "nanbeige": lambda: NanbeigeForCausalLM(NanbeigeConfig(**OURO, num_key_value_heads=1, head_dim=8)),
    "parcae": lambda: ParcaeForCausalLM(ParcaeConfig(**PARCAE)),
    "ouro's exits": lambda: OuroForCausalLM(OuroConfig(**OURO, exit_entropy_weight=0.1)),
}
# Tracing costs seconds a graph.
every_family = pytest.mark.parametrize("name", cases(SHAPES, keep=["huginn"]))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(name):
    torch.manual_seed(0)
    return SHAPES[name]()


def gradients(model):
    found = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@every_family
@pytest.mark.parametrize("padded", cases([False, True], keep=[False]))
def test_no_graph_breaks(name, padded):
    """In training with truncated backpropagation, in evaluation with a cache and without."""
    model, inputs = make(name), {"input_ids": IDS}
    if padded:
        inputs = left_pad([[5, 6, 7], [1, 2, 3, 4, 5]])
    explained = torch._dynamo.explain(model.train())(**inputs, labels=inputs["input_ids"], num_steps=3)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons
    with torch.no_grad():
        for use_cache in (True, False):
            explained = torch._dynamo.explain(model.eval())(**inputs, num_steps=2, use_cache=use_cache)
            assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


@pytest.mark.full
@pytest.mark.parametrize("name", SHAPES)
def test_a_training_step_at_every_depth(name):
    """One graph for each, without a break; losses and gradients are those of the plain model."""
    model, counter = make(name).train(), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for depth in (2, 4, 3, 4):
        common = {"labels": IDS, "num_steps": depth, "seeds": SEEDS}
        losses, found = [], []
        for each in (model, compiled):
            losses.append(each(IDS, **common).loss)
            losses[-1].backward()
            found.append(gradients(model))
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*found)
    assert counter.frame_count == 3


@pytest.mark.full
def test_a_depth_from_the_config_is_in_the_graph():
    model = RavenForCausalLM(tiny_config(**RAVEN, training_depth=4)).train()
    explained = torch._dynamo.explain(model)(IDS, labels=IDS)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)


@pytest.mark.full
def test_a_random_depth_is_drawn_before_the_graph():
    """And is as random as without it."""
    explained = torch._dynamo.explain(make("huginn").train())(IDS, labels=IDS)
    assert explained.graph_break_count == 1
    model, depths = make("huginn").train(), []
    compiled = torch.compile(model, backend="eager")
    for each in (model, compiled):
        torch.manual_seed(1)
        depths.append([each(IDS, labels=IDS).loss.item() for _ in range(3)])
    assert depths[0] == pytest.approx(depths[1], abs=1e-5) and len(set(depths[0])) == 3


@every_family
@torch.no_grad()
def test_a_compiled_pass_fills_the_same_cache(name):
    model = make(name).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    common = {"num_steps": 2, "seeds": SEEDS}
    rest = [model(IDS[:, 6:], cache=each(IDS[:, :6], **common).cache, **common).logits for each in (model, compiled)]
    torch.testing.assert_close(*rest)


@every_family
@pytest.mark.parametrize("masked", cases([False, True], keep=[True]))
@torch.no_grad()
def test_export(name, masked):
    """For every width, also those that the plain model computes by another kernel."""
    model, width = make(name).eval(), torch.export.Dim("width", min=2, max=128)
    settings = {"num_steps": 2, "use_cache": False, "seeds": SEEDS}
    inputs = {"input_ids": IDS} | ({"attention_mask": torch.ones_like(IDS)} if masked else {})
    shapes = {key: {1: width} for key in inputs} | dict.fromkeys(settings)
    program = torch.export.export(model, (), inputs | settings, dynamic_shapes=shapes).module()
    for rows in ([[5, 6, 7], [1, 2]], [list(range(40)), list(range(31))]):
        new = left_pad(rows)
        if not masked:
            new = {"input_ids": new["input_ids"]}
        torch.testing.assert_close(program(**new, **settings).logits, model(**new, **settings).logits)
    assert not any(isinstance(kept, FakeTensor) for kept in model.base_model._frequencies.values())


@pytest.mark.parametrize("name", cases(["huginn", "ouro"], keep=["huginn"]))
def test_trainer(name, tmp_path):
    """`torch_compile=True`, over steps of different depth."""
    model, depths = make(name), [2, 3]
    model.base_model.sample_depth = torch.compiler.disable(lambda: depths.pop())
    arguments = few_steps(tmp_path, torch_compile=True, torch_compile_backend="eager")
    data = [{"input_ids": row, "labels": row} for row in IDS]
    assert Trainer(model=model, args=arguments, train_dataset=data).train().metrics["train_loss"] > 0
    assert not depths


def test_ouro_draws_no_seed():
    """Its states start from the embedding: a call leaves torch's generator as it is."""
    model = make("ouro")
    before = torch.get_rng_state()
    model.train()(IDS, labels=IDS)
    model.eval()(IDS)
    assert torch.equal(torch.get_rng_state(), before)

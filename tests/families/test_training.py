"""Training: labels, random depth, truncated backpropagation, checkpointing (arXiv 2502.05171, section 3.3)."""

import pytest
import torch
import torch.nn.functional as F

from hf_diffusion_forcing import RavenForCausalLM
from hf_diffusion_forcing.cache import NoCache
from support import tiny_config
from support.matrix import crossed

IDS = torch.randint(0, 61, (2, 11), generator=torch.manual_seed(0))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_is_shifted_cross_entropy(tiny):
    labels = IDS.clone()
    labels[:, :4] = -100
    output = tiny(IDS, labels=labels, seeds=torch.tensor([1, 2]))
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, expected)


def test_backpropagation_through_all_recurrences_is_autograd(tiny):
    """With mean_backprop_depth = num_steps nothing is truncated: the gradients of the plain unrolled loop."""
    tiny.train()
    tiny.config.mean_backprop_depth = 4
    seeds = torch.tensor([1, 2])
    tiny(IDS, labels=IDS, num_steps=4, seeds=seeds).loss.backward()
    truncated = gradients(tiny)
    tiny.zero_grad()
    at = NoCache().place(torch.arange(11).expand(2, 11))
    e = tiny.embed(IDS, at)
    s = tiny.initialize_state(e, at.positions, seeds)
    for depth in range(4):
        s = tiny.recur(s, e, at, depth)
    tiny.loss_function(tiny.decode(s, at), labels=IDS, vocab_size=61).backward()
    for name, gradient in gradients(tiny).items():
        torch.testing.assert_close(truncated[name], gradient, atol=1e-6, rtol=1e-4)


def test_truncation_stops_gradients_but_not_the_forward(tiny):
    seeds = torch.tensor([1, 2])
    full = tiny(IDS, num_steps=6, seeds=seeds, use_cache=False).logits
    tiny.train()
    output = tiny(IDS, labels=IDS, num_steps=6, seeds=seeds)
    torch.testing.assert_close(output.logits, full, atol=1e-5, rtol=0)
    calls = []
    recur = tiny.recur
    tiny.recur = lambda *args: calls.append(torch.is_grad_enabled()) or recur(*args)
    tiny(IDS, num_steps=6)
    assert calls == [False] * 3 + [True] * 3  # mean_backprop_depth is 3


def test_random_depth_has_the_papers_distribution():
    model = RavenForCausalLM(tiny_config(mean_recurrence=16))
    torch.manual_seed(0)
    depths = torch.tensor([model.sample_depth() for _ in range(4000)]).float()
    assert depths.min() >= 1
    assert abs(depths.mean() - 17) < 0.6  # Poisson of a log-normal with mean 16, plus one
    assert depths.max() > 32


def test_depth_is_random_in_training_only(tiny):
    depths = []
    recur = tiny.recur
    tiny.recur = lambda *args: depths.append(args[-1]) or recur(*args)
    tiny.eval()(IDS)
    assert depths == list(range(6))
    depths.clear()
    tiny.train()
    torch.manual_seed(1)
    for _ in range(6):
        tiny(IDS)
    assert depths.count(0) == 6 and len(depths) != 36


def test_gradient_checkpointing_changes_no_gradient(tiny):
    """It runs the blocks that carry gradients once more in the backward pass, and that is all."""
    tiny.train()
    results, calls = [], []
    for block in tiny.transformer.core_block:
        block.norm_1.register_forward_hook(lambda *args: calls.append(torch.is_grad_enabled()))
    for checkpointing in (False, True):
        if checkpointing:
            tiny.gradient_checkpointing_enable()
        tiny.zero_grad()
        calls.clear()
        tiny(IDS, labels=IDS, num_steps=4, seeds=torch.tensor([1, 2])).loss.backward()
        assert len(calls) == 2 * (4 + 3 * checkpointing)  # mean_backprop_depth is 3
        results.append(gradients(tiny))
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_falls(checkpointing):
    torch.manual_seed(0)
    model = RavenForCausalLM(tiny_config()).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_no_cache_is_made_while_training(tiny):
    assert tiny.train()(IDS).cache is None
    assert tiny(IDS, use_cache=True, num_steps=3).cache.columns == 11
    assert tiny.eval()(IDS).cache.columns == 11
    assert tiny(IDS, use_cache=False).cache is None
    tiny.config.use_cache = False
    assert tiny(IDS).cache is None
    tiny.train().gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="use_cache=True is not possible with gradient checkpointing"):
        tiny(IDS, use_cache=True)
    with pytest.raises(ValueError, match="cache is not possible with gradient checkpointing"):
        tiny(IDS, cache=tiny.new_cache(6))


def test_the_context_is_kept_outside_no_grad(tiny):
    """A cache made with gradients on holds what one made without them does."""
    common = {"seeds": torch.tensor([1, 2]), "num_steps": 6}
    whole = tiny(IDS, use_cache=False, **common).logits
    past = tiny(IDS[:, :-1], **common).cache
    assert not any(stored.requires_grad for stored in (*past.keys, *past.values))
    torch.testing.assert_close(tiny(IDS[:, -1:], cache=past, **common).logits, whole[:, -1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("mode", "kv_sharing", "padding"),
    crossed(
        ["eval", "train"],
        ["none", "last", 2],
        [None, "left", "right"],
        keep=[("eval", "none", None), ("eval", "last", "left"), ("train", 2, "right")],
    ),
)
def test_a_cache_changes_no_gradient(tiny, mode, kv_sharing, padding):
    getattr(tiny, mode)()
    mask = None if padding is None else torch.ones_like(IDS)
    if mask is not None:
        mask[1, :4] = 0
        mask = mask.flip(1) if padding == "right" else mask
    labels = IDS if mask is None else IDS.masked_fill(mask == 0, -100)
    results = []
    for cache in (None, tiny.new_cache(4, kv_sharing)):
        tiny.zero_grad()
        call = {"use_cache": False} if cache is None else {"cache": cache}
        output = tiny(IDS, attention_mask=mask, labels=labels, num_steps=4, seeds=torch.tensor([1, 2]), **call)
        output.loss.backward()
        results.append({"loss": output.loss.detach()} | gradients(tiny))
    assert len(results[0]) > 20
    for name, expected in results[0].items():
        torch.testing.assert_close(results[1][name], expected, atol=1e-6, rtol=1e-4, msg=name)


def test_a_cache_with_an_adapter_on_queries_alone(tiny):
    """Keys and values then carry no gradients in the first layer, and autograd keeps them all the same."""
    tiny.requires_grad_(False)
    tiny.transformer.prelude[0].norm_1.weight.requires_grad_()
    query = tiny.transformer.core_block[1].attn.qk_bias.requires_grad_()
    results = []
    for use_cache in (False, True):
        query.grad = None
        tiny(IDS, labels=IDS, num_steps=4, seeds=torch.tensor([1, 2]), use_cache=use_cache).loss.backward()
        results.append(query.grad)
    torch.testing.assert_close(*results)


def test_labels_that_are_shifted_already(tiny):
    common = {"seeds": torch.tensor([1, 2]), "num_items_in_batch": 20}
    shifted = F.pad(IDS, (0, 1), value=-100)[:, 1:].contiguous()
    expected = tiny(IDS, labels=IDS, **common).loss
    torch.testing.assert_close(tiny(IDS, labels=IDS, shift_labels=shifted, **common).loss, expected)
    torch.testing.assert_close(tiny(IDS, shift_labels=shifted, **common).loss, expected)
    assert tiny(IDS, shift_labels=shifted.roll(1, 0).contiguous(), labels=IDS, **common).loss != expected
    with pytest.raises(ValueError, match="does not take shift_labels"):
        tiny.base_model(IDS, shift_labels=shifted)


def test_gradients_in_eval_mode(tiny):
    tiny(IDS, labels=IDS, num_steps=3).loss.backward()
    assert all(parameter.grad is not None for parameter in tiny.transformer.core_block.parameters())


def test_right_padding_and_tuples(tiny):
    """A Trainer's batch: padded on the right, labels ignored there, num_items_in_batch given, a tuple back."""
    seeds = torch.tensor([1])
    mask = torch.tensor([[1] * 8 + [0] * 3])
    labels = IDS[:1].masked_fill(mask == 0, -100)
    common = {"num_steps": 3, "seeds": seeds, "num_items_in_batch": torch.tensor(7)}
    loss, logits = tiny(IDS[:1], attention_mask=mask, labels=labels, return_dict=False, **common)[:2]
    short = tiny(IDS[:1, :8], labels=IDS[:1, :8], **common)
    torch.testing.assert_close(loss, short.loss)
    torch.testing.assert_close(logits[:, :8], short.logits)


def test_autocast(tiny):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tiny.train()(IDS, labels=IDS, num_steps=3).loss
    loss.backward()
    assert loss.isfinite()

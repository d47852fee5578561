"""Every family trains: loss, gradients through the unrolled recurrences, LoRA."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer

from hf_diffusion_forcing.cache import NoCache
from support import FAMILIES, NATIVE
from support.matrix import cases
from support.training import few_steps

IDS = torch.randint(0, 128, (2, 16), generator=torch.manual_seed(0))
LINEAR = ("Wqkv", "fc", "proj", "adapter", "c_q", "c_v", "q_proj", "v_proj", "down_proj")


@pytest.fixture(params=NATIVE)
def name(request):
    return request.param


@pytest.fixture
def model(name):
    return AutoModelForCausalLM.from_pretrained(FAMILIES[name])


def train(model, steps=20, lr=3e-3):
    """Losses of some steps on one batch."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = model(IDS, labels=IDS, num_steps=4, seeds=torch.tensor([1, 2])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("checkpointing", cases([False, True], keep=[True]))
def test_the_loss_falls_over_20_steps(model, checkpointing):
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    losses = train(model)
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_backpropagation_through_all_recurrences_is_autograd(model):
    """With mean_backprop_depth = num_steps nothing is truncated: the gradients of the plain unrolled loop."""
    model.train()
    model.config.mean_backprop_depth = 4
    seeds = torch.tensor([1, 2])
    model(IDS, labels=IDS, num_steps=4, seeds=seeds).loss.backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    at = NoCache().place(torch.arange(16).expand(2, 16))
    e = model.embed(IDS, at)
    s = model.initialize_state(e, at.positions, seeds)
    for depth in range(4):
        s = model.recur(s, e, at, depth)
    logits = model.decode(s, at)
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)


def test_truncation_stops_gradients_but_not_the_forward(model):
    seeds = torch.tensor([1, 2])
    with torch.no_grad():
        full = model.eval()(IDS, num_steps=4, seeds=seeds, use_cache=False).logits
    gradients = []
    model.train()
    for depth in (4, 1):
        model.config.mean_backprop_depth = depth
        model.zero_grad()
        output = model(IDS, labels=IDS, num_steps=4, seeds=seeds)
        torch.testing.assert_close(output.logits, full, atol=1e-4, rtol=0)
        output.loss.backward()
        core = next(p for key, p in model.named_parameters() if "core_block" in key or "layers" in key)
        gradients.append(core.grad.clone())
    assert not torch.allclose(*gradients)


def test_ouro_trains_at_its_own_depth():
    model = AutoModelForCausalLM.from_pretrained(FAMILIES["ouro"]).train()
    depths = []
    model(IDS, labels=IDS, on_recurrence=lambda s, before: depths.append(s.requires_grad))
    assert depths == [True] * 4


def test_lora(model, name, tmp_path):
    """Adapters learn, the rest stays; what is merged generates as the adapted model does, by every sampler."""
    frozen = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    linear = (key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    targets = {key.split(".")[-1] for key in linear} & set(LINEAR)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=sorted(targets), lora_alpha=32)
    adapted = get_peft_model(model, config).train()
    losses = train(adapted, lr=1e-2)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    for key, tensor in adapted.get_base_model().state_dict().items():
        if "lora_" not in key:
            assert torch.equal(tensor, frozen[key.replace(".base_layer", "")]), key
    adapted.eval().save_pretrained(tmp_path)
    common = {"sampler": "speculative_wavefront", "num_steps": 4, "max_new_tokens": 8, "seed": 0}
    expected = adapted.generate(input_ids=IDS[:, :6], **common).tolist()
    again = AutoModelForCausalLM.from_pretrained(FAMILIES[name])
    again.load_adapter(str(tmp_path))
    assert again.eval().generate(IDS[:, :6], **common).tolist() == expected
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert type(merged) is type(again)
    assert merged.generate(IDS[:, :6], **common).tolist() == expected


def test_trainer(model, tmp_path):
    arguments = few_steps(tmp_path, max_steps=3)
    data = [{"input_ids": row, "labels": row} for row in IDS]
    trainer = Trainer(model=model, args=arguments, train_dataset=data)
    assert trainer.train().metrics["train_loss"] > 0
    trainer.save_model(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for key, tensor in model.state_dict().items():
        assert torch.equal(saved.state_dict()[key], tensor), key

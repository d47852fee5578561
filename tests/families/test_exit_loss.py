"""Ouro's exit gate in training: frozen, or trained by the expected loss over its exits."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM

from hf_diffusion_forcing import OuroConfig, OuroForCausalLM
from hf_diffusion_forcing.models.ouro.exit_loss import expected_exit_loss
from support import FAMILIES
from support.processes import run_in_two

IDS = torch.randint(0, 128, (2, 16), generator=torch.manual_seed(0))
SMALL = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def load(weight):
    return AutoModelForCausalLM.from_pretrained(FAMILIES["ouro"], exit_entropy_weight=weight).train()


def expected(exits, logits, labels, weight):
    """By its definition, position by position."""
    total, count = 0.0, 0
    for row in range(len(labels)):
        for column in range(labels.shape[1] - 1):
            if (label := labels[row, column + 1]) == -100:
                continue
            gates, stayed, probabilities = torch.sigmoid(exits[:, row, column]), 1.0, []
            for gate in gates:
                probabilities.append(stayed * gate)
                stayed = stayed * (1 - gate)
            probabilities.append(stayed)
            losses = [F.cross_entropy(each[row, column], label) for each in logits]
            total += sum(p * (loss + weight * p.log()) for p, loss in zip(probabilities, losses, strict=True))
            count += 1
    return total, count


def test_the_loss_is_its_definition():
    generator = torch.manual_seed(0)
    exits, logits = torch.randn(3, 2, 5, generator=generator), torch.randn(4, 2, 5, 7, generator=generator)
    labels = torch.randint(0, 7, (2, 5), generator=generator)
    labels[0, :3] = -100
    total, count = expected(exits, logits, labels, 0.1)
    torch.testing.assert_close(expected_exit_loss(exits, logits, labels, 0.1), total / count)
    torch.testing.assert_close(expected_exit_loss(exits, logits, labels, 0.1, num_items_in_batch=20), total / 20)
    shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
    torch.testing.assert_close(expected_exit_loss(exits, logits, None, 0.1, shift_labels=shifted), total / count)


def test_a_gate_that_is_sure_never_gives_nan():
    exits = torch.tensor([1e4, -1e4]).view(2, 1, 1).repeat(1, 1, 3).requires_grad_()
    loss = expected_exit_loss(exits, torch.zeros(3, 1, 3, 7), torch.zeros(1, 3, dtype=torch.int64), 0.1)
    loss.backward()
    assert loss.isfinite() and exits.grad.isfinite().all()


def test_the_models_loss_is_over_its_exits():
    model, states = load(0.1), []
    output = model(IDS, labels=IDS, on_recurrence=lambda s, before: states.append(s))
    exits = torch.stack([model.exit_gate(s) for s in states[:3]])
    total, count = expected(exits, [model.lm_head(s) for s in states], IDS, 0.1)
    torch.testing.assert_close(output.loss, total / count, atol=1e-4, rtol=0)
    output.loss.backward()
    assert model.model.early_exit_gate.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("weight", [None, 0.1])
def test_without_training_the_loss_is_that_of_the_last_recurrence(weight):
    model = load(weight).eval()
    output = model(IDS, labels=IDS)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()))


def test_the_gate_is_out_of_the_graph_unless_it_is_trained():
    made = [OuroForCausalLM(OuroConfig(**SMALL, exit_entropy_weight=weight)) for weight in (None, 0.1)]
    for frozen, trained in ([load(None), load(0.1)], made):
        assert not any(p.requires_grad for p in frozen.model.early_exit_gate.parameters())
        assert all(p.requires_grad for p in trained.parameters())
        assert all(p.requires_grad for key, p in frozen.named_parameters() if "early_exit_gate" not in key)
    # A base model has no loss that could train it.
    base = AutoModel.from_pretrained(FAMILIES["ouro"], exit_entropy_weight=0.1)
    assert not base.early_exit_gate.weight.requires_grad


def test_the_setting_is_stored(tmp_path):
    load(0.05).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.exit_entropy_weight == 0.05 and again.model.early_exit_gate.weight.requires_grad


def test_training_the_gate_teaches_it_which_exit_is_good():
    """Without the entropy term it leaves the recurrences that predict worse."""
    model = load(0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        losses.append(model(IDS, labels=IDS).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_entropy_weight": -0.1}, "exit_entropy_weight=-0.1 must be 0 or more"),
        ({"exit_entropy_weight": float("nan")}, "exit_entropy_weight=nan"),
        ({"exit_entropy_weight": 0.1, "total_ut_steps": 1}, "total_ut_steps=2 or more"),
        ({"exit_entropy_weight": 0.1, "training_depth": 1}, "training_depth=2 or more"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        OuroConfig(**SMALL | settings)


DISTRIBUTED = """
import json, sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
import hf_diffusion_forcing

dist.init_process_group("gloo")
found = {}
for weight in (None, 0.1):
    model = AutoModelForCausalLM.from_pretrained(json.loads(sys.argv[1]), exit_entropy_weight=weight).train()
    gate = model.model.early_exit_gate.weight
    before, parallel = gate.detach().clone(), DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.arange(8)[None] + 8 * dist.get_rank()
    for _ in range(3):
        parallel(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    total = sum(p.double().sum() for p in model.parameters()).item()
    found[str(weight)] = {"moved": not torch.equal(gate, before), "total": total}
sys.stdout.write(json.dumps(found) + "\\n")
sys.stdout.flush()
dist.destroy_process_group()
"""


@pytest.mark.full
def test_two_processes_wait_for_no_gradient_that_does_not_come(tmp_path):
    """DistributedDataParallel as it is: a parameter without a gradient ends its second step."""
    first, second = run_in_two(DISTRIBUTED, tmp_path, str(FAMILIES["ouro"]))
    assert first == second
    assert (first["None"]["moved"], first["0.1"]["moved"]) == (False, True)

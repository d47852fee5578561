"""Every family with transformers' heads for labels: loading, training, adapters, reward models."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Trainer,
    pipeline,
)

from hf_diffusion_forcing import bundled_checkpoint
from support import CLASSES, FAMILIES, NATIVE, left_pad
from support.matrix import crossed
from support.training import few_steps

SEQUENCE, TOKEN = AutoModelForSequenceClassification, AutoModelForTokenClassification
every_head = pytest.mark.parametrize(
    ("name", "auto"),
    crossed(NATIVE, [SEQUENCE, TOKEN], keep=[("olmo", SEQUENCE), ("ouro", TOKEN), ("nanbeige", SEQUENCE)]),
)
ROWS = [[55, 2, 103, 95, 53], [61, 88], [37, 19, 7, 120, 69, 125, 106, 81], [14]]
IDS = torch.tensor([[55, 2, 103, 95, 53], [37, 19, 7, 120, 69]])
SEEDED = {"num_steps": 3, "seeds": torch.tensor([1, 2])}


def load(auto, name, **more):
    return auto.from_pretrained(FAMILIES[name], num_labels=3, pad_token_id=0, **more)


def labels_of(auto):
    return torch.tensor([1, 2]) if auto is SEQUENCE else IDS % 3


@every_head
@torch.no_grad()
def test_a_causal_checkpoint_loads(name, auto, warnings):
    """transformers says that the new head is random, and nothing of the old one; the rest is the checkpoint's."""
    model = load(auto, name).eval()
    assert type(model) is (CLASSES[name].sequence if auto is SEQUENCE else CLASSES[name].token)
    assert "score.weight" in warnings.text and "lm_head" not in warnings.text
    base = AutoModel.from_pretrained(FAMILIES[name]).eval()
    scores = model.score(base(IDS, **SEEDED).last_hidden_state)
    logits = model(IDS, **SEEDED).logits
    torch.testing.assert_close(logits, scores[:, -1] if auto is SEQUENCE else scores)


@every_head
@torch.no_grad()
def test_it_is_saved_and_loaded(name, auto, tmp_path, warnings):
    model = load(auto, name).eval()
    model.save_pretrained(tmp_path)
    warnings.clear()
    assert torch.equal(auto.from_pretrained(tmp_path)(IDS, **SEEDED).logits, model(IDS, **SEEDED).logits)
    features = AutoModel.from_pretrained(tmp_path)(IDS, **SEEDED).last_hidden_state
    assert torch.equal(features, model.base_model(IDS, **SEEDED).last_hidden_state)
    assert not warnings.records
    if model.config.tie_word_embeddings:
        language_model = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(language_model.lm_head.weight, model.get_input_embeddings().weight)
    else:
        with pytest.raises(ValueError, match=r"1 missing \(expected, not found\): lm_head.weight"):
            AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_classifier_without_its_head_is_damaged(tmp_path):
    load(SEQUENCE, "olmo").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing \(expected, not found\): score.weight"):
        SEQUENCE.from_pretrained(tmp_path)


def test_only_the_head_may_be_missing(tmp_path):
    AutoModelForCausalLM.from_pretrained(FAMILIES["ouro"]).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing \(expected, not found\): model.norm.weight"):
        SEQUENCE.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["llama", "ouro"])
@torch.no_grad()
def test_padding_on_either_side_changes_no_score(name):
    model, common = load(SEQUENCE, name).eval(), {"num_steps": 3}
    left, pads = left_pad(ROWS), [8 - len(row) for row in ROWS]
    right = {}
    for key, rows in left.items():
        right[key] = torch.stack([row.roll(-pad) for row, pad in zip(rows, pads, strict=True)])
    scores = [model(**inputs, **common, seeds=torch.ones(4, dtype=int)).logits for inputs in (left, right)]
    for row, prompt in enumerate(ROWS):
        alone = model(torch.tensor([prompt]), **common, seeds=torch.ones(1, dtype=int)).logits[0]
        for each in scores:
            torch.testing.assert_close(each[row], alone, atol=1e-4, rtol=0)


@every_head
def test_trainer(name, auto, tmp_path):
    model = load(auto, name)
    before = model.score.weight.clone()
    arguments = few_steps(tmp_path, max_steps=1)
    data = [{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, labels_of(auto), strict=True)]
    assert Trainer(model=model, args=arguments, train_dataset=data).train().metrics["train_loss"] > 0
    assert not torch.equal(model.score.weight, before)


@every_head
def test_lora(name, auto, tmp_path):
    """The adapter and the new head learn in a step, and are saved together."""
    model = load(auto, name)
    linear = {"Wqkv", "adapter", "q_proj", "down_proj"}
    target = sorted({key.split(".")[-1] for key, _ in model.named_modules()} & linear)
    task = "SEQ_CLS" if auto is SEQUENCE else "TOKEN_CLS"
    adapted = get_peft_model(model, LoraConfig(task_type=task, target_modules=target, init_lora_weights=False))
    before = {key: p.clone() for key, p in adapted.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    adapted.train()(input_ids=IDS, labels=labels_of(auto), num_steps=3).loss.backward()
    optimizer.step()
    moved = {key for key, p in adapted.named_parameters() if not torch.equal(p, before[key])}
    assert any("lora_A" in key for key in moved) and any("score" in key for key in moved)
    assert all("lora_" in key or "score" in key for key in moved)
    adapted.eval().save_pretrained(tmp_path)
    again = load(auto, name)
    again.load_adapter(str(tmp_path))
    with torch.no_grad():
        expected, found = (each.eval()(input_ids=IDS, **SEEDED).logits for each in (adapted, again))
    torch.testing.assert_close(found, expected)


def test_pipelines():
    path = bundled_checkpoint()
    texts = ["12 + 34 =", "7 ="]
    found = pipeline("text-classification", model=path)(texts)
    assert [each["label"][:6] for each in found] == ["LABEL_"] * 2
    assert pipeline("token-classification", model=path)(texts[0])


@pytest.mark.parametrize("name", ["bundled", pytest.param("ouro", marks=pytest.mark.full)])
def test_trls_reward_trainer(name, tmp_path):
    """By the path of a causal checkpoint, as its command does: TRL asks for one label and no dropout."""
    from trl import RewardConfig, RewardTrainer

    tokenizer = AutoTokenizer.from_pretrained(bundled_checkpoint())
    path = bundled_checkpoint()
    if name == "ouro":
        path = str(tmp_path / "ouro")
        AutoModelForCausalLM.from_pretrained(FAMILIES["ouro"]).save_pretrained(path)
    pairs = Dataset.from_list([{"chosen": "1 + 1 = 2", "rejected": "1 + 1 = 5"}, {"chosen": "2", "rejected": "17"}] * 2)
    arguments = few_steps(tmp_path, RewardConfig)
    trainer = RewardTrainer(model=path, args=arguments, train_dataset=pairs, processing_class=tokenizer)
    assert type(trainer.model).__name__.endswith("ForSequenceClassification") and trainer.model.num_labels == 1
    trainer.train()
    assert trainer.state.log_history[0]["loss"] > 0

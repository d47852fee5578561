"""Packed batches: several sequences in a row, told apart by position_ids that restart."""

import pytest
import torch
from transformers import DataCollatorWithFlattening, Trainer

from support import SAMPLERS
from support.matrix import crossed
from support.training import few_steps

TEXTS = [[5, 6, 7, 8, 9], [3, 1], [2, 7, 1, 8, 2, 8, 1]]
FIXED = {"num_steps": 3, "seeds": torch.tensor([4])}


def packed(**settings) -> dict:
    rows = [{"input_ids": text} for text in TEXTS]
    return dict(DataCollatorWithFlattening(**settings)(rows, return_tensors="pt"))


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    ("mode", "flash"), crossed(["train", "eval"], [False, True], keep=[("train", True), ("eval", False)])
)
def test_losses_and_gradients_are_those_of_the_sequences(family, mode, flash):
    """Every sequence starts from the same noise, as it does alone with the same seed."""
    was_training = family.training
    try:
        getattr(family, mode)()
        batch = packed(return_flash_attn_kwargs=flash, return_seq_idx=flash)
        assert ("cu_seq_lens_q" in batch) == flash
        output = family(**batch, **FIXED)
        assert output.cache is None
        output.loss.backward()
        together, loss, count = gradients(family), 0.0, 0
        total = sum(len(text) - 1 for text in TEXTS)
        for text in TEXTS:
            ids = torch.tensor([text])
            alone = family(ids, labels=ids, use_cache=False, num_items_in_batch=total, **FIXED)
            alone.loss.backward()
            loss += alone.loss.item()
            torch.testing.assert_close(output.logits[:, count : count + len(text)], alone.logits, atol=1e-4, rtol=1e-4)
            count += len(text)
        assert output.loss.item() == pytest.approx(loss, abs=1e-5)
        apart = gradients(family)
        assert together.keys() == apart.keys()
        for name, gradient in together.items():
            torch.testing.assert_close(gradient, apart[name], atol=2e-5, rtol=1e-3, msg=name)
    finally:
        family.zero_grad()
        family.train(was_training)


@torch.no_grad()
def test_several_packed_rows_with_padding(tiny):
    rows, pad = [[5, 6, 7, 3, 1], [2, 7, 1, 8]], 0
    ids = torch.tensor([rows[0], rows[1] + [pad]])
    mask = torch.tensor([[1] * 5, [1, 1, 1, 1, 0]])
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 1]])
    logits = tiny(ids, attention_mask=mask, position_ids=positions, num_steps=3, seeds=torch.tensor([1, 2])).logits
    for row, first, last in [(0, 0, 3), (0, 3, 5), (1, 0, 1), (1, 1, 4)]:
        alone = tiny(ids[row : row + 1, first:last], num_steps=3, seeds=torch.tensor([row + 1])).logits
        torch.testing.assert_close(logits[row : row + 1, first:last], alone, atol=1e-5, rtol=0)
    assert logits.isfinite().all()


@torch.no_grad()
def test_sequences_of_a_row_start_from_noise_of_their_own(tiny):
    ids = torch.tensor([[5, 6, 7, 5, 6, 7]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    torch.manual_seed(0)
    first, second = tiny(ids, position_ids=positions, num_steps=1).latents.chunk(2, dim=1)
    assert not torch.allclose(first, second, atol=1e-3)
    first, second = tiny(ids, position_ids=positions, num_steps=1, seeds=torch.tensor([3])).latents.chunk(2, dim=1)
    torch.testing.assert_close(first, second)


@torch.no_grad()
def test_positions_that_say_nothing_new(tiny):
    ids, common = torch.tensor([[5, 6, 7], [0, 6, 7]]), {"seeds": torch.tensor([1, 2])}
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    plain = tiny(ids, attention_mask=mask, **common)
    for padding in (0, 1):  # transformers has written either there
        given = torch.tensor([[0, 1, 2], [padding, 0, 1]])
        output = tiny(ids, attention_mask=mask, position_ids=given, **common)
        assert torch.equal(output.logits, plain.logits) and output.cache is not None
    assert torch.equal(tiny(ids, position_ids=torch.arange(3)[None], **common).logits, tiny(ids, **common).logits)
    step = tiny(ids[:, -1:], cache=tiny(ids[:, :-1], **common).cache, position_ids=torch.tensor([[2]]), **common)
    torch.testing.assert_close(step.logits, tiny(ids, **common).logits[:, -1:], atol=1e-5, rtol=0)
    harmless = {"cache_position": torch.arange(3), "token_type_ids": torch.zeros(2, 3, dtype=torch.long)}
    assert torch.equal(tiny(ids, **harmless, **common).logits, tiny(ids, **common).logits)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generate_ignores_positions_that_agree(tiny, sampler):
    call = SAMPLERS[sampler] | {"seed": 1, "max_new_tokens": 5}
    ids, mask = torch.tensor([[5, 6, 7], [0, 6, 7]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    plain = tiny.generate(ids, attention_mask=mask, **call)
    harmless = {"token_type_ids": torch.zeros_like(ids), "position_ids": torch.tensor([[0, 1, 2], [1, 0, 1]])}
    assert tiny.generate(ids, attention_mask=mask, **harmless, **call).tolist() == plain.tolist()


def test_packed_rows_have_no_cache(tiny):
    batch = packed()
    with pytest.raises(ValueError, match="use_cache=True is not possible with packed rows"):
        tiny(**batch, use_cache=True)
    with pytest.raises(ValueError, match="cache is not possible with packed rows"):
        tiny(**batch, cache=tiny.new_cache(6))
    cache = tiny(batch["input_ids"][:, :5]).cache
    with pytest.raises(ValueError, match="position_ids holds 0 at row 0, column 0"):
        tiny(batch["input_ids"][:, 5:], position_ids=batch["position_ids"][:, 5:], cache=cache)


@pytest.mark.parametrize(
    "wrong", ["cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "position_ids"]
)
def test_flash_arguments_that_do_not_agree(tiny, wrong):
    batch = packed(return_flash_attn_kwargs=True, return_seq_idx=True)
    if wrong == "position_ids":
        with pytest.raises(ValueError, match="cu_seq_lens_q needs position_ids"):
            tiny(**batch | {"position_ids": None})
        return
    batch[wrong] = batch[wrong] + 1
    with pytest.raises(ValueError, match=f"{wrong} does not agree with position_ids"):
        tiny(**batch)


def test_trainer_with_a_flattening_collator(tiny, tmp_path):
    arguments = few_steps(tmp_path, max_steps=3, per_device_train_batch_size=3)
    rows = [{"input_ids": text} for text in TEXTS]
    trainer = Trainer(tiny, arguments, train_dataset=rows, data_collator=DataCollatorWithFlattening())
    assert trainer.train().training_loss > 0
    assert trainer.evaluate(rows)["eval_loss"] > 0

"""Packed weights: the same sums from another layout."""

import copy

import pytest
import torch

from hf_diffusion_forcing import RavenForCausalLM, pack_linear_weights, packing, unpack_linear_weights
from hf_diffusion_forcing.packing import FBGEMM, PackedLinear, packable_dtypes, packed_dtypes
from support import left_pad, tiny_config

ROWS = [[3, 1, 4, 1, 5], [9, 2]]


@pytest.fixture(params=packable_dtypes())
def model(request):
    torch.manual_seed(0)
    return RavenForCausalLM(tiny_config(n_embd=64, intermediate_size=96)).to(request.param).eval()


def logits(model):
    with torch.no_grad():
        return model(**left_pad(ROWS), seeds=torch.tensor([1, 2])).logits.float()


def test_logits_are_the_same(model):
    plain = logits(model)
    assert pack_linear_weights(model) is model
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == 4 * 4 + 2
    tolerance = 1e-5 if model.dtype == torch.float32 else 0.05
    torch.testing.assert_close(logits(model), plain, atol=tolerance, rtol=tolerance)
    unpack_linear_weights(model)
    assert not [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert torch.equal(logits(model), plain)


def test_texts_are_the_same(bundled):
    network, tokenizer = bundled
    model = pack_linear_weights(copy.deepcopy(network))
    inputs = tokenizer(["Q: Start at 3 + 2 - 1. Last digit?\nA:", "Q: Start at 9. Last digit?\nA:"], padding=True)
    inputs = inputs.convert_to_tensors("pt")
    for sampler in ("autoregressive", "diffusion_forcing", "speculative_wavefront"):
        common = {"sampler": sampler, "seed": 0, "max_new_tokens": 12}
        assert model.generate(**inputs, **common).tolist() == network.generate(**inputs, **common).tolist()


def test_saving_and_gradients_see_plain_weights(model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack_linear_weights(model)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        n: t.shape for n, t in before.items()
    }
    model.save_pretrained(tmp_path)
    loaded = RavenForCausalLM.from_pretrained(tmp_path, dtype=model.dtype)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())
    model.train()
    model(torch.tensor([ROWS[0]]), labels=torch.tensor([ROWS[0]])).loss.backward()
    assert model.transformer.adapter.weight.grad.abs().sum() > 0


def test_a_changed_weight_is_used_as_it_is(model):
    pack_linear_weights(model)
    stale = logits(model)
    with torch.no_grad():
        model.transformer.core_block[0].mlp.proj.weight.mul_(3)
    fresh = logits(model)
    assert not torch.allclose(fresh, stale)
    torch.testing.assert_close(logits(pack_linear_weights(model)), fresh, atol=0.05, rtol=0.05)


def test_copies_and_pickles_are_plain(model, tmp_path):
    pack_linear_weights(model)
    packed = logits(model)
    copied = copy.deepcopy(model)
    torch.testing.assert_close(logits(copied), packed, atol=0.05, rtol=0.05)
    torch.save(model, tmp_path / "whole.pt")
    loaded = torch.load(tmp_path / "whole.pt", weights_only=False)
    torch.testing.assert_close(logits(pack_linear_weights(loaded)), packed, atol=0.05, rtol=0.05)


def test_another_dtype_falls_back_to_the_plain_weight(model):
    pack_linear_weights(model)
    other = torch.bfloat16 if model.dtype == torch.float32 else torch.float32
    model.to(other)
    assert logits(model).isfinite().all()


def test_there_and_back_drops_the_copy(model):
    pack_linear_weights(model)
    model.to(torch.float64).to(model.dtype)
    assert not [m for m in model.modules() if isinstance(m, PackedLinear) and m.packed is not None]
    assert logits(model).isfinite().all()


needs_fbgemm = pytest.mark.skipif(torch.backends.quantized.engine not in FBGEMM, reason="this torch has no FBGEMM")


@pytest.fixture
def halved():
    """A float32 model whose weights float16 holds exactly, so that its copies are equal to them."""
    torch.manual_seed(0)
    return RavenForCausalLM(tiny_config(n_embd=64, intermediate_size=96)).half().float().eval()


@needs_fbgemm
def test_float16_copies_give_the_sums_of_the_rounded_weights(halved):
    plain = logits(halved)
    pack_linear_weights(halved, dtype=torch.float16)
    assert packed_dtypes(halved) == ["torch.float16"]
    torch.testing.assert_close(logits(halved), plain, atol=1e-5, rtol=1e-5)
    unpack_linear_weights(halved)
    assert packed_dtypes(halved) == []
    assert torch.equal(logits(halved), plain)


@needs_fbgemm
def test_float16_copies_round_the_weights_of_a_pass(halved):
    layer = halved.transformer.adapter
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    x = torch.randn(1, 3, layer.in_features)
    rounded = torch.nn.functional.linear(x, layer.weight.half().float())
    assert not torch.allclose(layer(x), rounded, atol=1e-5, rtol=0)
    with torch.no_grad():
        pack_linear_weights(halved, dtype=torch.float16)
        torch.testing.assert_close(layer(x), rounded, atol=1e-5, rtol=1e-5)


@needs_fbgemm
def test_packing_again_changes_the_kind(halved):
    pack_linear_weights(pack_linear_weights(halved, dtype=torch.float16))
    assert packed_dtypes(halved) == ["torch.float32"]
    pack_linear_weights(halved, dtype=torch.float16)
    copied = copy.deepcopy(halved)
    assert logits(copied).isfinite().all()


@needs_fbgemm
@pytest.mark.parametrize("wrong", [1e6, float("nan"), float("-inf")])
def test_weights_beyond_float16_are_refused_by_name(halved, wrong):
    with torch.no_grad():
        halved.transformer.core_block[0].mlp.proj.weight[3, 5] = wrong
    with pytest.raises(ValueError, match=r"core_block.0.mlp.proj.weight holds numbers .*65504.*leave dtype out"):
        pack_linear_weights(halved, dtype=torch.float16)
    assert packed_dtypes(halved) == []


def test_dtypes_of_copies_are_checked(halved, monkeypatch):
    with pytest.raises(ValueError, match=r"dtype=torch.int8: pass torch.float16, or None"):
        pack_linear_weights(halved, dtype=torch.int8)
    if torch.backends.quantized.engine in FBGEMM:
        with pytest.raises(
            ValueError, match=r"found torch.float64 on cpu.*float32 to torch.float16.*dtype=torch.float32"
        ):
            pack_linear_weights(halved.double(), dtype=torch.float16)
    monkeypatch.setattr(packing, "FBGEMM", ("another",))
    with pytest.raises(RuntimeError, match=r"quantized.engine is '.*leave dtype out"):
        pack_linear_weights(halved, dtype=torch.float16)


def test_what_cannot_be_packed_is_named():
    with pytest.raises(ValueError, match=r"float16 on cpu.*float32"):
        pack_linear_weights(RavenForCausalLM(tiny_config()).half())
    with pytest.raises(ValueError, match="found none"):
        pack_linear_weights(torch.nn.ReLU())


def test_a_dtype_the_processor_cannot_pack_is_refused_by_name():
    refused = {torch.float32, torch.bfloat16, torch.float16} - set(packable_dtypes())
    for dtype in refused:
        with pytest.raises(ValueError, match=f"found {dtype} on cpu.*dtype={packable_dtypes()[-1]}"):
            pack_linear_weights(RavenForCausalLM(tiny_config()).to(dtype))

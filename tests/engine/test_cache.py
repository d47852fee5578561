"""Law 9 and the cache's own rules."""

import pytest
import torch
import torch.nn.functional as F

from hf_diffusion_forcing import RecurrentDepthCache
from hf_diffusion_forcing.cache import Slots


def expected_bytes(model, batch, capacity, slots):
    config = model.config
    layers = config.n_layers_in_prelude + slots * config.n_layers_in_recurrent_block + config.n_layers_in_coda
    return 2 * batch * config.num_key_value_heads * (capacity + 1) * config.head_dim * 4 * layers


@pytest.mark.parametrize("kv_sharing", ["last", "none"])
def test_law_9_bytes(tiny, kv_sharing):
    ids = torch.randint(0, 61, (3, 10))
    output = tiny.generate(
        ids, sampler="autoregressive", kv_sharing=kv_sharing, max_new_tokens=14, return_dict_in_generate=True
    )
    slots = 1 if kv_sharing == "last" else tiny.config.mean_recurrence
    assert output.cache.nbytes == expected_bytes(tiny, 3, 64, slots)  # memory grows by 64 positions


def test_sharing_costs_what_a_fixed_depth_model_costs(tiny):
    ids = torch.randint(0, 61, (1, 10))
    output = tiny.generate(ids, sampler="diffusion_forcing", max_new_tokens=6, return_dict_in_generate=True)
    assert output.cache.nbytes == expected_bytes(tiny, 1, 64, slots=1)


def stored(cache, layer=0, slot=0):
    return cache.keys[layer][slot, :, 0, :-1, 0]


def attend(cache, positions, values, **kwargs):
    """Write numbers as keys and values at positions of a one-layer, one-channel cache."""
    at = cache.place(torch.tensor(positions), **{k: v for k, v in kwargs.items() if k != "slot"})
    x = torch.tensor(values, dtype=torch.float32)[:, None, :, None]
    return at.attend(0, torch.zeros_like(x), x, x, kwargs.get("slot", 0))[:, 0, :, 0]


def one_layer(num_steps=1, kv_sharing="last", capacity=0):
    return RecurrentDepthCache(0, 1, 0, num_steps, kv_sharing, capacity)


def test_attention_is_causal_over_absolute_positions():
    cache = one_layer()
    y = attend(cache, [[0, 1, 2]], [[1.0, 3.0, 5.0]], start=0)
    assert y.tolist() == [[1.0, 2.0, 3.0]]  # equal scores: means of what stands before


def test_ragged_rows_and_padding():
    cache = one_layer()
    y = attend(cache, [[-1, 0, 1], [0, 1, 2]], [[99.0, 1.0, 3.0], [2.0, 4.0, 6.0]])
    assert y[0, 1:].tolist() == [1.0, 2.0]
    assert y[1].tolist() == [2.0, 3.0, 4.0]
    # Row 0 goes on at position 2, row 1 rewrites position 1: later entries of row 1 are not seen.
    y = attend(cache, [[2], [1]], [[5.0], [8.0]])
    assert y.tolist() == [[3.0], [5.0]]


@pytest.mark.parametrize(("before", "width", "kv_heads"), [(5, 300, 4), (300, 257, 2), (1, 256, 4), (40, 700, 1)])
def test_many_positions_after_others_see_up_to_their_own(before, width, kv_heads):
    """Against a mask written out: however many there are, and however they are divided."""
    torch.manual_seed(0)
    query, keys, values = (torch.randn(2, heads, before + width, 8) for heads in (4, kv_heads, kv_heads))
    cache = RecurrentDepthCache(1, 0, 0, 1)
    for start, stop in ((0, before), (before, before + width)):
        at = cache.place(torch.arange(start, stop).expand(2, -1), start=start)
        seen = at.attend(0, *(x[:, :, start:stop] for x in (query, keys, values)))
    mask = torch.ones(width, before + width, dtype=torch.bool).tril(before)
    expected = F.scaled_dot_product_attention(query[:, :, before:], keys, values, mask, enable_gqa=True)
    torch.testing.assert_close(seen, expected, atol=1e-5, rtol=0)


def test_growth_keeps_what_was_written():
    cache = one_layer(capacity=2)
    attend(cache, [[0, 1]], [[1.0, 2.0]], start=0)
    attend(cache, [[2]], [[3.0]], start=2)
    assert cache.capacity == 64
    assert stored(cache)[0, :3].tolist() == [1.0, 2.0, 3.0]


def test_positions_at_different_recurrences_see_the_last_there_has_been():
    cache = one_layer(num_steps=3, kv_sharing="none")
    attend(cache, [[0]], [[1.0]], start=0, slot=torch.tensor([[0]]))  # position 0 stopped after one recurrence
    y = attend(cache, [[1]], [[3.0]], start=1, slot=torch.tensor([[2]]))
    assert y.tolist() == [[2.0]]
    assert [stored(cache, slot=slot)[0, 0].item() for slot in range(3)] == [1.0, 1.0, 1.0]
    assert [stored(cache, slot=slot)[0, 1].item() for slot in range(3)] == [0.0, 0.0, 3.0]


def test_a_tensor_of_equal_depths_is_that_depth(tiny):
    ids = torch.randint(0, 61, (1, 12))
    positions, rows = torch.arange(6).repeat(2)[None], torch.arange(2).repeat_interleave(6)[None]
    outputs = []
    for depth in (1, torch.ones(1, 12, dtype=torch.long)):
        at = tiny.new_cache(3, "none", 8).place_rows(positions, rows, [6, 6], [6, 6], depth=depth)
        e = tiny.embed(ids, at)
        outputs.append(tiny.recur(e, e, at, 0))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("slots", [0, torch.tensor([[1, 0, 1]]), Slots((1, 0, 1), torch.tensor([1, 0, 1]))])
def test_a_cache_keeps_its_dtype(dtypes, slots):
    """Made under autocast and used outside it, or the other way round: values are cast on their way in and out."""
    cache, (first, second) = one_layer(num_steps=2, kv_sharing="none"), dtypes
    rows = torch.tensor([[0, 0, 1]])
    for start, dtype in ((0, first), (2, second)):
        at = cache.place_rows(torch.tensor([[start, start + 1, start]]), rows, [2, 1], [start + 2, start + 1])
        x = torch.tensor([1.0, 3.0, 8.0], dtype=dtype)[None, None, :, None]
        y = at.attend(0, torch.zeros_like(x), x, x, slots)
        assert y.dtype == dtype and y.shape == x.shape and y.isfinite().all()
        assert cache.keys[0].dtype == cache.values[0].dtype == first


def test_crop_moves_a_number():
    cache = one_layer()
    attend(cache, [[0, 1, 2]], [[1.0, 2.0, 3.0]], start=0)
    cache.columns = 3
    keys = cache.keys[0]
    cache.crop(2)
    assert cache.get_seq_length() == 2 and cache.keys[0] is keys
    cache.crop(-1)
    assert cache.get_seq_length() == 1
    cache.crop(0)
    assert cache.get_seq_length() == 1


def test_rows_can_be_selected():
    cache = one_layer()
    attend(cache, [[0], [0]], [[1.0], [2.0]], start=0)
    cache.batch_select_indices(torch.tensor([1, 1, 0]))
    assert stored(cache)[:, 0].tolist() == [2.0, 2.0, 1.0]


def test_bad_settings():
    with pytest.raises(ValueError, match="kv_sharing='first'"):
        one_layer(kv_sharing="first")
    with pytest.raises(ValueError, match="num_steps=0"):
        one_layer(num_steps=0)
    with pytest.raises(ValueError, match="num_steps=2"):
        one_layer(num_steps=2, kv_sharing="none").slot(2)

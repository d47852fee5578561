"""Attention of a few positions to a cache."""

import torch
import torch.nn.functional as F

FEW = 16
"""Up to so many queries a CPU is faster with two plain matrix products than with torch's blocked kernel (measured with
torch 2.13: 1.1 to 2.9 times from 64 keys to 2,048)."""


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, is_causal: bool = False
) -> torch.Tensor:
    """Scaled dot-product attention, [batch, heads, width, head_dim].

    Args:
        query: [batch, heads, width, head_dim].
        key, value: [batch, kv_heads, keys, head_dim].
        mask: added to the scores, [batch or 1, 1, width, keys]; None when every key is seen.
        is_causal: query i sees keys up to i; `mask` is None then.
    """
    batch, heads, width, head_dim = query.shape
    grouped = heads != key.shape[1]
    few = 1 < width <= FEW and batch == 1 and query.device.type == "cpu" and mask is not None
    if few and not grouped and not torch.is_grad_enabled():
        scores = torch.baddbmm(mask[0], query[0], key[0].transpose(1, 2), alpha=head_dim**-0.5)
        return torch.bmm(scores.softmax(-1), value[0])[None]
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal, enable_gqa=grouped)

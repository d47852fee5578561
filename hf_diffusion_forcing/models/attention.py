"""Attention with rotary positions, through a placement."""

from collections.abc import Callable

import torch
from torch import nn

from ..cache import Placement, Slots


def project(
    x: torch.Tensor, q_proj: nn.Module, k_proj: nn.Module, v_proj: nn.Module, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What `rotary_attention` takes, from separate projections.

    Args:
        x: [batch, width, channels].
        q_proj, k_proj, v_proj: linear maps without rotation; a shard of a model has some of the heads.

    Returns:
        `qk`, `value` and `heads` of `rotary_attention`.
    """
    query, key, value = q_proj(x), k_proj(x), v_proj(x)
    shape = (*x.shape[:2], -1, head_dim)
    return torch.cat((query, key), dim=-1).view(shape), value.view(shape), query.shape[-1] // head_dim


def rotary_attention(
    qk: torch.Tensor,
    value: torch.Tensor,
    heads: int,
    rotate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    at: Placement,
    layer: int,
    slot: int | torch.Tensor | Slots,
) -> torch.Tensor:
    """Causal attention of the positions of a pass, through their placement.

    Args:
        qk: [batch, width, heads + kv_heads, head_dim], queries before keys, not rotated yet.
        value: [batch, width, kv_heads, head_dim].
        heads: how many of `qk` are queries.
        rotate: `rotate_pairs` or `rotate_halves`.
        at: placement of the pass, with its `rotary` filled in.
        layer, slot: see `Placement.attend`.

    Returns:
        [batch, width, heads * head_dim].
    """
    # On a CPU, attention from one position is more than twice as fast in float32 as in bfloat16, so the cache is
    # float32 there. (A parameter may lift qk out of autocast; the cache must have a single dtype.)
    dtype = torch.float32 if qk.device.type == "cpu" and qk.itemsize < 4 else qk.dtype
    qk, value = rotate(qk, at.rotary).to(dtype), value.to(dtype)
    query, key = qk[:, :, :heads], qk[:, :, heads:]
    y = at.attend(layer, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), slot)
    return y.transpose(1, 2).flatten(2)

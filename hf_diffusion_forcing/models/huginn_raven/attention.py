"""Attention of all layouts."""

import torch
from torch import nn

from ...cache.recurrent_depth_cache import NoCache, Placement, RecurrentDepthCache
from ..attention import rotary_attention
from ..rotary import rotate_halves
from .configuration_huginn_raven import RavenConfig


class RavenAttention(nn.Module):
    """Causal attention, grouped where there are fewer keys than queries; one map makes all three.

    A layout says what happens to queries and keys before RoPE (`prepare`), and how RoPE turns them (`rotate`).
    """

    rotate = staticmethod(rotate_halves)

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.num_key_value_heads, config.head_dim
        self.Wqkv = nn.Linear(config.n_embd, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.proj = nn.Linear(self.heads * self.head_dim, config.n_embd, bias=False)

    def prepare(self, qk: torch.Tensor) -> torch.Tensor:
        """Queries and keys before RoPE, [batch, width, heads + kv_heads, head_dim]."""
        return qk

    def forward(self, x: torch.Tensor, cache: RecurrentDepthCache | NoCache, placed: Placement, slot: int):
        batch, width, _ = x.shape
        qkv = self.Wqkv(x).view(batch, width, -1, self.head_dim)
        rotated = self.heads + self.kv_heads
        qk, value = self.prepare(qkv[:, :, :rotated]), qkv[:, :, rotated:]
        y = rotary_attention(qk, value, self.heads, self.rotate, cache, placed, self.layer, slot)
        return self.proj(y.type_as(x))

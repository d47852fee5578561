"""Huginn's own block (arXiv 2502.05171, section 3.2)."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ...cache.recurrent_depth_cache import NoCache, Placement, RecurrentDepthCache
from ..norm import RMSNorm
from ..rotary import rotate_pairs
from .attention import RavenAttention
from .configuration_huginn_raven import RavenConfig
from .mlp import RavenMLP


class HuginnAttention(RavenAttention):
    """A bias on queries and keys; RoPE turns neighbouring channels."""

    rotate = staticmethod(rotate_pairs)

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__(config, layer)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.heads, self.head_dim))

    def prepare(self, qk: torch.Tensor) -> torch.Tensor:
        return qk + self.qk_bias.view(-1, self.head_dim)


class HuginnBlock(GradientCheckpointingLayer):
    """Sandwich: a norm before each part and one after each residual sum."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.norm_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.attn = HuginnAttention(config, layer)
        self.norm_2 = RMSNorm(config.n_embd, config.norm_eps)
        self.norm_3 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = RavenMLP(config)
        self.norm_4 = RMSNorm(config.n_embd, config.norm_eps)

    def forward(self, x: torch.Tensor, cache: RecurrentDepthCache | NoCache, placed: Placement, slot: int = 0):
        x = self.norm_2(self.attn(self.norm_1(x), cache, placed, slot) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)

"""The block of Raven models made from OLMo-2 (arXiv 2511.07384)."""

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from ...cache.recurrent_depth_cache import NoCache, Placement, RecurrentDepthCache
from ..norm import RMSNorm
from .attention import RavenAttention
from .configuration_huginn_raven import RavenConfig
from .mlp import RavenMLP


class OlmoAttention(RavenAttention):
    """A norm over the channels of all queries together, and one over those of all keys."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__(config, layer)
        self.q_norm = RMSNorm(self.heads * self.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(self.kv_heads * self.head_dim, config.norm_eps)

    def prepare(self, qk: torch.Tensor) -> torch.Tensor:
        query, key = self.q_norm(qk[:, :, : self.heads].flatten(2)), self.k_norm(qk[:, :, self.heads :].flatten(2))
        return torch.cat((query, key), dim=-1).view(qk.shape)


class OlmoBlock(GradientCheckpointingLayer):
    """Post-norm: a norm on what each part adds."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.attn = OlmoAttention(config, layer)
        self.norm_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = RavenMLP(config)
        self.norm_2 = RMSNorm(config.n_embd, config.norm_eps)

    def forward(self, x: torch.Tensor, cache: RecurrentDepthCache | NoCache, placed: Placement, slot: int = 0):
        x = x + self.norm_1(self.attn(x, cache, placed, slot))
        return x + self.norm_2(self.mlp(x))

"""The block of Raven models made from Llama and TinyLlama (arXiv 2511.07384)."""

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from ...cache.recurrent_depth_cache import NoCache, Placement, RecurrentDepthCache
from ..norm import RMSNorm
from .attention import RavenAttention
from .configuration_huginn_raven import RavenConfig
from .mlp import RavenMLP


class LlamaBlock(GradientCheckpointingLayer):
    """Pre-norm: a norm before each part."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.norm_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.attn = RavenAttention(config, layer)
        self.norm_2 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = RavenMLP(config)

    def forward(self, x: torch.Tensor, cache: RecurrentDepthCache | NoCache, placed: Placement, slot: int = 0):
        x = x + self.attn(self.norm_1(x), cache, placed, slot)
        return x + self.mlp(self.norm_2(x))

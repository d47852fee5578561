"""One layer of Ouro's loop (arXiv 2510.25741, section 3)."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ...cache.recurrent_depth_cache import NoCache, Placement, RecurrentDepthCache
from ..attention import rotary_attention
from ..norm import RMSNorm
from ..rotary import rotate_halves
from .configuration_ouro import OuroConfig


class OuroAttention(nn.Module):
    """Causal attention, grouped where there are fewer keys than queries; nothing has a bias."""

    def __init__(self, config: OuroConfig, layer: int):
        super().__init__()
        self.layer, self.heads, self.head_dim = layer, config.num_attention_heads, config.head_dim
        queries, keys = self.heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cache: RecurrentDepthCache | NoCache, placed: Placement, slot: int):
        heads = (*x.shape[:2], -1, self.head_dim)
        qk = torch.cat((self.q_proj(x), self.k_proj(x)), dim=-1).view(heads)
        value = self.v_proj(x).view(heads)
        y = rotary_attention(qk, value, self.heads, rotate_halves, cache, placed, self.layer, slot)
        return self.o_proj(y.type_as(x))


class OuroMLP(nn.Module):
    """silu(gate) * up, then a projection."""

    def __init__(self, config: OuroConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class OuroLayer(GradientCheckpointingLayer):
    """Sandwich: a norm before each part, and one on what it adds."""

    def __init__(self, config: OuroConfig, layer: int):
        super().__init__()
        self.self_attn = OuroAttention(config, layer)
        self.mlp = OuroMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, cache: RecurrentDepthCache | NoCache, placed: Placement, slot: int = 0):
        x = x + self.input_layernorm_2(self.self_attn(self.input_layernorm(x), cache, placed, slot))
        return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x)))

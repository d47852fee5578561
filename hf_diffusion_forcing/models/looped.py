"""What looped models share: one Llama-like stack of layers, run several times on its own output.

A family adds its layer, and what happens between two loops.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ..cache import Placement, RecurrentDepthCache, Slots
from .attention import project, rotary_attention
from .attention_choice import ChosenAttention
from .base_model import RecurrentDepthModel
from .causal_lm import HeadedForCausalLM
from .loading import HEADS, CheckedLoading
from .looped_config import LoopedConfig
from .norm import RMSNorm
from .rotary import rotate_halves


class LoopedAttention(nn.Module):
    """Causal attention, grouped if there are fewer keys than queries; without biases."""

    def __init__(self, config: LoopedConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots):
        qk, value, heads = project(x, self.q_proj, self.k_proj, self.v_proj, self.head_dim)
        y = rotary_attention(qk, value, heads, rotate_halves, at, self.layer, slot)
        return self.o_proj(y.type_as(x))


class LoopedMLP(nn.Module):
    """silu(gate) * up, then a projection."""

    def __init__(self, config: LoopedConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LoopedPreTrainedModel(CheckedLoading, ChosenAttention, PreTrainedModel):
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _can_compile_fullgraph = False

    def finish_loading(self):
        """Check the split over processes.

        Raises:
            ValueError: tensor parallelism would split a head.
        """
        heads, processes = self.config.num_key_value_heads, self.tp_size or 1
        if heads % processes:
            raise ValueError(
                f"tp_plan='auto' over {processes} processes would split a head: num_key_value_heads={heads}. Use a "
                "number of processes that divides it."
            )


class LoopedModel(RecurrentDepthModel):
    """The loop without a head: e is the token embedding, and the state starts from it.

    A family sets `layer_class`, and overrides `recur` and `read_out` where its norm comes.
    """

    layer_class: type[nn.Module]
    starts_from_noise = False
    _keys_to_ignore_on_load_unexpected = list(HEADS)

    def __init__(self, config: LoopedConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(self.layer_class(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, input_ids, at, inputs_embeds=None):
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def initialize_state(self, e, positions, seeds, scale=1.0):
        """The embedding itself; there is no noise to seed or scale."""
        return e

    def recur(self, s, e, at, depth):
        """All layers once, without the norm."""
        self.rotate(at)
        slot = at.slot(depth)
        for layer in self.layers:
            s = layer(s, at, slot)
        return s

    def read_out(self, s, at, readout=0, kept=slice(None)):
        return s[:, kept]

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        return RecurrentDepthCache(0, self.config.num_hidden_layers, 0, num_steps, kv_sharing, capacity)


class LoopedLanguageModel(HeadedForCausalLM):
    """A `LoopedModel` with a head. Diffusion forcing is not defined: nothing but the start sees a changed draft.

    A family sets `model_class`.
    """

    model_class: type[LoopedModel]
    has_injected_embedding = False
    starts_from_noise = False
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: LoopedConfig):
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

"""Ouro: one stack of layers, run several times on its own output (arXiv 2510.25741, section 3)."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ...cache import Placement, RecurrentDepthCache, Slots
from ...compat import GenericForSequenceClassification, GenericForTokenClassification, GradientCheckpointingLayer
from ..attention import rotary_attention
from ..attention_choice import ChosenAttention
from ..base_model import RecurrentDepthModel
from ..causal_lm import HeadedForCausalLM
from ..loading import HEADS, CheckedLoading, ClassifierLoading, stored_config
from ..norm import RMSNorm
from ..rotary import rotate_halves
from ..special_tokens import correct_token_id, tokenizer_ids
from .configuration_ouro import OuroConfig
from .exit_loss import expected_exit_loss

TURN_END = "<|im_end|>"
"""The token that ends a turn in ChatML, the format the models were trained on."""


class OuroAttention(nn.Module):
    """Causal attention, grouped if there are fewer keys than queries; without biases."""

    def __init__(self, config: OuroConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots):
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        shape = (*x.shape[:2], -1, self.head_dim)  # a shard of the model has some of the heads
        qk, heads = torch.cat((query, key), dim=-1).view(shape), query.shape[-1] // self.head_dim
        y = rotary_attention(qk, value.view(shape), heads, rotate_halves, at, self.layer, slot)
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
    """Sandwich: a norm before each part, and one on its output."""

    def __init__(self, config: OuroConfig, layer: int):
        super().__init__()
        self.self_attn = OuroAttention(config, layer)
        self.mlp = OuroMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots = 0):
        x = x + self.input_layernorm_2(self.self_attn(self.input_layernorm(x), at, slot))
        return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x)))


class OuroPreTrainedModel(CheckedLoading, ChosenAttention, PreTrainedModel):
    config: OuroConfig
    config_class = OuroConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["OuroLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _can_compile_fullgraph = False

    trains_exit_gate = False
    """Whether a loss of this class reads the exit gate; otherwise the gate is frozen."""

    def freeze_unused_gate(self):
        """Keep the gate out of the graph, unless the config asks for a loss that trains it.

        DistributedDataParallel waits for the gradient of every parameter that wants one.
        """
        trained = self.trains_exit_gate and self.config.exit_entropy_weight is not None
        self.base_model.early_exit_gate.requires_grad_(trained)

    def finish_loading(self):
        """Check the split over processes, and freeze the gate again.

        Raises:
            ValueError: tensor parallelism would split a head.
        """
        heads, processes = self.config.num_key_value_heads, self.tp_size or 1
        if heads % processes:
            raise ValueError(
                f"tp_plan='auto' over {processes} processes would split a head: num_key_value_heads={heads}. Use a "
                "number of processes that divides it."
            )
        self.freeze_unused_gate()

    def correct_special_tokens(self, path, keywords):
        """Let the end of a turn end a text too, if the published config.json has only another id.

        The base models were published with eos_token_id 0; their chat format ends a turn with another token. A
        config.json with `mean_backprop_depth` was written by this class, so its ids are right.
        """
        stored = stored_config(path, keywords)
        if stored is None or "mean_backprop_depth" in stored:
            return
        ids = tokenizer_ids(path, keywords, (TURN_END,))
        right = sorted({ids[name] for name in ("eos_token_id", TURN_END) if name in ids})
        stale = self.config.eos_token_id
        if not set(right) <= set(stale if isinstance(stale, list) else [stale]):
            correct_token_id(self, "eos_token_id", right, path)


class OuroModel(RecurrentDepthModel, OuroPreTrainedModel):
    """The loop and its exit gate, without the head."""

    starts_from_noise = False

    _keys_to_ignore_on_load_unexpected = list(HEADS)

    def __init__(self, config: OuroConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(OuroLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.early_exit_gate = nn.Linear(config.hidden_size, 1)
        self.post_init()
        self.freeze_unused_gate()

    # --- the verbs ---

    def embed(self, input_ids, at, inputs_embeds=None):
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def initialize_state(self, e, positions, seeds, scale=1.0):
        """The embedding itself; there is no noise to seed or scale."""
        return e

    def recur(self, s, e, at, depth):
        self.rotate(at)
        slot = at.slot(depth)
        for layer in self.layers:
            s = layer(s, at, slot)
        return self.norm(s)

    def read_out(self, s, at, readout=0, kept=slice(None)):
        return s[:, kept]

    def exit_gate(self, s):
        return self.early_exit_gate(s)[..., 0]

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        return RecurrentDepthCache(0, self.config.num_hidden_layers, 0, num_steps, kv_sharing, capacity)


class OuroLanguageModel(HeadedForCausalLM, OuroPreTrainedModel):
    """An Ouro language model.

    There is no prelude and no coda: e is the token embedding, the state starts from it, and every recurrence ends with
    the norm that the head reads. Diffusion forcing is not defined, since nothing but the start sees a changed draft.
    The loss is that of the last recurrence. In training with `exit_entropy_weight` it is `expected_exit_loss`, which
    trains the exit gate too.
    """

    has_injected_embedding = False
    starts_from_noise = False
    has_exit_gate = True
    trains_exit_gate = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: OuroConfig):
        super().__init__(config)
        self.model = OuroModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        self.freeze_unused_gate()

    def exit_gate(self, s):
        return self.model.exit_gate(s)

    @property
    def reads_every_state(self):
        return self.training and self.config.exit_entropy_weight is not None

    def language_loss(self, logits, states, labels, **kwargs):
        if not states:
            return super().language_loss(logits, states, labels, **kwargs)
        exits = torch.stack([self.exit_gate(s).float() for s in states[:-1]])
        readouts = (self.lm_head(s) for s in states[:-1])
        return expected_exit_loss(exits, (*readouts, logits), labels, self.config.exit_entropy_weight, **kwargs)


class OuroForSequenceClassification(ClassifierLoading, GenericForSequenceClassification, OuroPreTrainedModel):
    """OuroModel with transformers' head for a label or a reward of a whole text, read at its last token."""

    base_model_prefix = OuroPreTrainedModel.base_model_prefix


class OuroForTokenClassification(ClassifierLoading, GenericForTokenClassification, OuroPreTrainedModel):
    """OuroModel with transformers' head for a label of every token."""

    base_model_prefix = OuroPreTrainedModel.base_model_prefix


__all__ = [
    "OuroConfig",
    "OuroForSequenceClassification",
    "OuroForTokenClassification",
    "OuroLanguageModel",
    "OuroModel",
    "OuroPreTrainedModel",
]

"""Ouro: one stack of layers, run several times on its own output (arXiv 2510.25741, section 3)."""

from torch import nn
from transformers import PreTrainedModel

from ...cache.recurrent_depth_cache import RecurrentDepthCache
from ..base_model import RecurrentDepthModel
from ..causal_lm import HeadedForCausalLM
from ..loading import CheckedLoading, stored_config
from ..norm import RMSNorm
from ..special_tokens import correct_token_id, tokenizer_ids
from .configuration_ouro import OuroConfig
from .layer import OuroLayer

TURN_END = "<|im_end|>"
"""What ends a turn of the ChatML format the models were trained on."""


class OuroPreTrainedModel(CheckedLoading, PreTrainedModel):
    config: OuroConfig
    config_class = OuroConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["OuroLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _can_compile_fullgraph = False

    def correct_special_tokens(self, path, keywords):
        """Let the end of a turn end a text too, where config.json, as published, names another id alone.

        The base models were published with eos_token_id 0; their chat format ends a turn with another token. A
        config.json with `mean_backprop_depth` was written by this class: what it says is meant.
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

    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: OuroConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(OuroLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.early_exit_gate = nn.Linear(config.hidden_size, 1)
        self.post_init()

    # --- the verbs ---

    def embed(self, input_ids, positions, cache):
        return self.embed_tokens(input_ids)

    def initialize_state(self, e, positions, seeds, scale=1.0):
        """The embedding itself; there is no noise to seed or scale."""
        return e

    def recur(self, s, e, positions, cache, depth):
        placed = self.placed(positions, cache)
        slot = cache.slot(depth)
        for layer in self.layers:
            s = layer(s, cache, placed, slot)
        return self.norm(s)

    def read_out(self, s, positions, cache, readout=0, kept=slice(None)):
        return s[:, kept]

    def exit_gate(self, s):
        return self.early_exit_gate(s)[..., 0]

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        return RecurrentDepthCache(0, self.config.num_hidden_layers, 0, num_steps, kv_sharing, capacity)


class OuroLanguageModel(HeadedForCausalLM, OuroPreTrainedModel):
    """An Ouro language model.

    There is no prelude and no coda: e is the token embedding, the state starts from it, and every recurrence ends with
    the norm that the head reads. Diffusion forcing is not defined, since nothing but the start sees a changed draft.
    The loss is that of the last recurrence; it does not train the exit gate.
    """

    has_injected_embedding = False
    starts_from_noise = False
    has_exit_gate = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: OuroConfig):
        super().__init__(config)
        self.model = OuroModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def exit_gate(self, s):
        return self.model.exit_gate(s)


__all__ = ["OuroConfig", "OuroLanguageModel", "OuroModel", "OuroPreTrainedModel"]

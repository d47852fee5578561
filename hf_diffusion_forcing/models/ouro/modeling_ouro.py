"""Ouro: one stack of layers, run several times on its own output (arXiv 2510.25741, section 3)."""

import torch
from torch import nn

from ...cache import Placement, Slots
from ...compat import GenericForSequenceClassification, GenericForTokenClassification, GradientCheckpointingLayer
from ..loading import ClassifierLoading, stored_config
from ..looped import LoopedAttention, LoopedLanguageModel, LoopedMLP, LoopedModel, LoopedPreTrainedModel
from ..norm import RMSNorm
from ..special_tokens import correct_token_id, tokenizer_ids
from .configuration_ouro import OuroConfig
from .exit_loss import expected_exit_loss

TURN_END = "<|im_end|>"
"""The token that ends a turn in ChatML, the format the models were trained on."""


class OuroLayer(GradientCheckpointingLayer):
    """Sandwich: a norm before each part, and one on its output."""

    def __init__(self, config: OuroConfig, layer: int):
        super().__init__()
        self.self_attn = LoopedAttention(config, layer)
        self.mlp = LoopedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots = 0):
        x = x + self.input_layernorm_2(self.self_attn(self.input_layernorm(x), at, slot))
        return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x)))


class OuroPreTrainedModel(LoopedPreTrainedModel):
    config: OuroConfig
    config_class = OuroConfig
    _no_split_modules = ["OuroLayer"]

    trains_exit_gate = False
    """Whether a loss of this class reads the exit gate; otherwise the gate is frozen."""

    def freeze_unused_gate(self):
        """Keep the gate out of the graph, unless the config asks for a loss that trains it.

        DistributedDataParallel waits for the gradient of every parameter that wants one.
        """
        trained = self.trains_exit_gate and self.config.exit_entropy_weight is not None
        self.base_model.early_exit_gate.requires_grad_(trained)

    def finish_loading(self):
        """Freeze the gate again."""
        super().finish_loading()
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


class OuroModel(LoopedModel, OuroPreTrainedModel):
    """The loop and its exit gate, without the head."""

    layer_class = OuroLayer

    def __init__(self, config: OuroConfig):
        super().__init__(config)
        self.early_exit_gate = nn.Linear(config.hidden_size, 1)
        self.post_init()
        self.freeze_unused_gate()

    def recur(self, s, e, at, depth):
        return self.norm(super().recur(s, e, at, depth))

    def exit_gate(self, s):
        return self.early_exit_gate(s)[..., 0]


class OuroLanguageModel(LoopedLanguageModel, OuroPreTrainedModel):
    """An Ouro language model.

    There is no prelude and no coda: e is the token embedding, the state starts from it, and every recurrence ends with
    the norm that the head reads. Diffusion forcing is not defined, since nothing but the start sees a changed draft.
    The loss is that of the last recurrence. In training with `exit_entropy_weight` it is `expected_exit_loss`, which
    trains the exit gate too.
    """

    model_class = OuroModel
    has_exit_gate = True
    trains_exit_gate = True

    def __init__(self, config: OuroConfig):
        super().__init__(config)
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

"""Nanbeige4.2: a Llama whose stack of layers runs several times on its own output."""

import torch

from ...cache import Placement, Slots
from ...compat import GenericForSequenceClassification, GenericForTokenClassification, GradientCheckpointingLayer
from ..loading import ClassifierLoading
from ..looped import LoopedAttention, LoopedLanguageModel, LoopedMLP, LoopedModel, LoopedPreTrainedModel
from ..norm import RMSNorm
from .configuration_nanbeige import NanbeigeConfig, refuse_unsupported


class NanbeigeLayer(GradientCheckpointingLayer):
    """Llama's: a norm before each part."""

    def __init__(self, config: NanbeigeConfig, layer: int):
        super().__init__()
        self.self_attn = LoopedAttention(config, layer)
        self.mlp = LoopedMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots = 0):
        x = x + self.self_attn(self.input_layernorm(x), at, slot)
        return x + self.mlp(self.post_attention_layernorm(x))


class NanbeigePreTrainedModel(LoopedPreTrainedModel):
    config: NanbeigeConfig
    config_class = NanbeigeConfig
    _no_split_modules = ["NanbeigeLayer"]


class NanbeigeModel(LoopedModel, NanbeigePreTrainedModel):
    """The loop without the head.

    Raises:
        ValueError: a setting that is not supported has been switched on in the config.
    """

    layer_class = NanbeigeLayer

    def __init__(self, config: NanbeigeConfig):
        refuse_unsupported(vars(config))  # again: it may have been set since the config was made
        super().__init__(config)
        self.post_init()

    def recur(self, s, e, at, depth):
        s = super().recur(s, e, at, depth)
        return s if self.config.skip_loop_final_norm else self.norm(s)

    def read_out(self, s, at, readout=0, kept=slice(None)):
        s = super().read_out(s, at, readout, kept)
        return self.norm(s) if self.config.skip_loop_final_norm else s


class NanbeigeLanguageModel(LoopedLanguageModel, NanbeigePreTrainedModel):
    """A Nanbeige language model.

    There is no prelude: e is the token embedding, and the state starts from it. The head reads the normed state, which
    with `skip_loop_final_norm` is normed for the head alone. Diffusion forcing is not defined, since nothing but the
    start sees a changed draft. The loss is that of the last recurrence.
    """

    model_class = NanbeigeModel

    @property
    def has_readable_shallow_states(self) -> bool:
        return any(self.config.loop_loss_weights)

    def __init__(self, config: NanbeigeConfig):
        super().__init__(config)
        self.post_init()


class NanbeigeForSequenceClassification(ClassifierLoading, GenericForSequenceClassification, NanbeigePreTrainedModel):
    """NanbeigeModel with transformers' head for a label or a reward of a whole text, read at its last token."""

    base_model_prefix = NanbeigePreTrainedModel.base_model_prefix


class NanbeigeForTokenClassification(ClassifierLoading, GenericForTokenClassification, NanbeigePreTrainedModel):
    """NanbeigeModel with transformers' head for a label of every token."""

    base_model_prefix = NanbeigePreTrainedModel.base_model_prefix


__all__ = [
    "NanbeigeConfig",
    "NanbeigeForSequenceClassification",
    "NanbeigeForTokenClassification",
    "NanbeigeLanguageModel",
    "NanbeigeModel",
    "NanbeigePreTrainedModel",
]

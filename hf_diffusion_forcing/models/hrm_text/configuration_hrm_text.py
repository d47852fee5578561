"""Configuration of `hrm_text` checkpoints: transformers' own, with what the samplers ask of a config."""

import sys

import transformers
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ...compat import attn_implementation
from ..attention_choice import check_implementation
from ..rotary import check_rope_type
from ..sizes import check_positive, check_sizes
from ..unrolled_config import UnrolledConfig


@strict
class HrmTextConfig(transformers.HrmTextConfig, UnrolledConfig):
    r"""transformers' `HrmTextConfig`, of which one recurrence is one H cycle.

    `mean_recurrence` is an alias of `H_cycles`, and `padded_vocab_size` of `vocab_size`. What `save_pretrained` writes
    is transformers' own.

    Args:
        training_depth, state_seed: see `UnrolledConfig`; nothing is drawn for an initial state, so the seed has no
            effect. The other arguments are those of transformers.

    Raises:
        ValueError: a size below 1. (What else the samplers do not have is refused when a model is made.)
    """

    attribute_map = {
        "mean_recurrence": "H_cycles",
        "padded_vocab_size": "vocab_size",
    }

    def __post_init__(self, **kwargs):
        check_sizes(
            self,
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
            "H_cycles",
            "L_cycles",
        )
        check_positive(self, "rms_norm_eps")
        super().__post_init__(**kwargs)

    @property
    def mean_backprop_depth(self) -> int:
        """Every cycle carries gradients, as in transformers; through which of its passes, `L_bp_cycles` says."""
        return sys.maxsize

    @property
    def trained_recurrences(self) -> int:
        """The number of cycles, of the original training or of one's own, whichever is more."""
        return max(self.H_cycles, self.training_depth or 0)

    def to_dict(self):
        """As transformers' own config: without the settings of training that are not set."""
        values = super().to_dict()
        return {name: value for name, value in values.items() if name not in OWN or value is not None}


OWN = ("training_depth", "state_seed")
"""The fields that transformers' own config lacks."""


def take_config(config: PreTrainedConfig) -> None:
    """Make the config of a model of transformers' class one of `HrmTextConfig`, in place: its modules share it.

    Raises:
        ValueError: a setting that transformers has and the samplers have not; then the config is as it was.
    """
    check_rope_type(config.rope_parameters)
    check_implementation(attn_implementation(config))
    if config.attention_dropout:
        raise ValueError(f"attention_dropout={config.attention_dropout} is not supported: set it to 0.0.")
    if not isinstance(config, HrmTextConfig):
        config.__class__ = HrmTextConfig
        config.auto_map = getattr(config, "auto_map", None) or {}


__all__ = ["HrmTextConfig"]

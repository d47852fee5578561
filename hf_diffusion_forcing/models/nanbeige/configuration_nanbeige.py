"""Configuration of `nanbeige` checkpoints (Nanbeige4.2-3B and its base model)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.utils import logging

from ..looped_config import LoopedConfig

logger = logging.get_logger(__name__)

UNSUPPORTED = (
    "enable_double_loop_split",
    "loop_middle_layers",
    "loop_share_kv",
    "enable_hyper_connection",
    "enable_mhc",
    "enable_depth_attention",
    "emb_neighbor_num",
    "emb_split_num",
    "ngram_vocab_size_ratio",
    "qk_layernorm",
    "attention_bias",
    "attention_dropout",
)
"""Settings of the published config class that would change the model; no released file switches one on."""


def refuse_unsupported(settings: dict[str, Any]) -> None:
    """ValueError that names every setting of `UNSUPPORTED` that is switched on."""
    found = [f"{name}={settings[name]!r}" for name in UNSUPPORTED if settings.get(name)]
    if found:
        raise ValueError(
            f"{', '.join(found)} is not supported for nanbeige: the released checkpoints do not set it, and this "
            "package would compute something else. If the weights were trained without it, remove it from config.json; "
            "otherwise use the code published with the checkpoint."
        )


@strict
class NanbeigeConfig(LoopedConfig):
    r"""Sizes and settings of a looped Llama: the same layers `num_loops` times.

    The field names are those of the Hub's config.json; `mean_recurrence` is an alias of `num_loops`, and
    `padded_vocab_size` of `vocab_size`, as this package expects of every family. `rope_theta` is read too and becomes
    part of `rope_parameters`, as everywhere in transformers 5. The defaults are those of Nanbeige4.2-3B.

    Args:
        vocab_size: tokens.
        hidden_size: channels of a latent state.
        intermediate_size: channels inside the gated MLP.
        num_hidden_layers: layers of the loop.
        num_attention_heads, num_key_value_heads: attention shape.
        head_dim: channels of a head, which need not be `hidden_size / num_attention_heads`.
        kv_channels: another name of `head_dim` in the published files; it follows `head_dim`, if that is given.
        hidden_act: must be "silu".
        max_position_embeddings: longest sequence.
        initializer_range: std of new weights.
        rms_norm_eps: added to the mean square in norms.
        rope_parameters: `rope_theta`, `rope_type` ("default" or "llama3") and the type's parameters.
        num_loops: recurrences when `num_steps` is not given; 2 when None, or what `loop_loss_weights` says.
        loop_loss_weights: weights of the losses of all loops but the last in the original training. If there are any,
            the number of loops is one more than their number. The loss of this package is that of the last loop.
        skip_loop_final_norm: the norm comes once, after the last loop, instead of after every loop.
        mean_backprop_depth: how many of the last recurrences carry gradients in training; all when None. With fewer
            than there are, the embedding gets none, because only the first recurrence reads it.
        training_depth, state_seed: see `UnrolledConfig`; an initial state is the embedding, so the seed has no effect.

    Raises:
        ValueError: a size is impossible, or a setting of `UNSUPPORTED` is on; the message has its name and value.
    """

    model_type = "nanbeige"
    attribute_map = {"mean_recurrence": "num_loops", "padded_vocab_size": "vocab_size"}
    default_theta = 70_000_000.0

    vocab_size: int = 166144
    hidden_size: int = 3072
    intermediate_size: int = 10752
    num_hidden_layers: int = 22
    num_attention_heads: int = 48
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    kv_channels: int | None = None
    max_position_embeddings: int = 262144
    rms_norm_eps: float = 1e-5
    num_loops: int | None = None
    loop_loss_weights: list[float | int] | None = None
    skip_loop_final_norm: bool = False

    def __post_init__(self, **kwargs):
        refuse_unsupported(kwargs)
        if self.head_dim is None:
            self.head_dim = 128 if self.kv_channels is None else self.kv_channels
        self.kv_channels = self.head_dim
        self.loop_loss_weights = list(self.loop_loss_weights or ())
        loops = len(self.loop_loss_weights) + 1 if self.loop_loss_weights else None
        if loops is not None and self.num_loops not in (None, loops):
            logger.warning(
                f"num_loops={self.num_loops} does not fit loop_loss_weights, which has a weight for every loop but the "
                f"last: using num_loops={loops}, as the published code does. Leave one of the two out."
            )
        if loops is not None or self.num_loops is None:
            self.num_loops = loops or 2
        super().__post_init__(**kwargs)


__all__ = ["NanbeigeConfig"]

"""Configuration of `ouro` checkpoints (Ouro-1.4B, Ouro-2.6B and their Thinking versions)."""

import math

from huggingface_hub.dataclasses import strict

from ...compat import CACHE
from ..rotary import check_rope_type
from ..sizes import check_heads, check_positive, check_sizes
from ..unrolled_config import UnrolledConfig


@strict
class OuroConfig(UnrolledConfig):
    r"""Sizes and settings of a looped transformer: the same layers `total_ut_steps` times (arXiv 2510.25741).

    The field names are those of the Hub's config.json; `mean_recurrence` is an alias of `total_ut_steps`, and
    `padded_vocab_size` of `vocab_size`, as this package expects of every family. `rope_theta` is read too and
    becomes part of `rope_parameters`, as everywhere in transformers 5. The defaults are Ouro-1.4B's.

    Args:
        vocab_size: tokens.
        hidden_size: channels of a latent state.
        intermediate_size: channels inside the gated MLP.
        num_hidden_layers: layers of the loop.
        num_attention_heads, num_key_value_heads, head_dim: attention shape.
        hidden_act: must be "silu".
        max_position_embeddings: longest sequence.
        initializer_range: std of new weights.
        rms_norm_eps: added to the mean square in norms.
        rope_parameters: `rope_theta`, `rope_type` ("default" or "llama3") and the type's parameters.
        layer_types: must be "full_attention" for each layer.
        total_ut_steps: recurrences when `num_steps` is not given.
        mean_backprop_depth: how many of the last recurrences carry gradients in training; all when None.
        training_depth, state_seed: see `UnrolledConfig`; an initial state is the embedding, so the seed has no effect.
        exit_entropy_weight: trains the exit gate, as section 3 of the paper does: the loss in training is the expected
            loss over the exit distribution minus this many times its entropy (the paper's beta, 0.1 and later 0.05).
            None trains on the last recurrence's loss alone, and the gate is frozen (`requires_grad=False`).
        early_exit_threshold: cumulative exit probability at which `exit_criterion="exit_gate"` lets a position exit
            where the call does not say; 1.0 is never before the last recurrence.

    Raises:
        ValueError: a size is impossible or a kind of layer unsupported; the message has its name and value.
    """

    model_type = "ouro"
    keys_to_ignore_at_inference = [CACHE, "latents"]
    attribute_map = {"mean_recurrence": "total_ut_steps", "padded_vocab_size": "vocab_size"}
    default_theta = 1_000_000.0
    base_model_tp_plan = {
        "embed_tokens": "embedding_rowwise",
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    vocab_size: int = 49152
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 65536
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_parameters: dict | None = None
    layer_types: list[str] | None = None
    total_ut_steps: int = 4
    mean_backprop_depth: int | None = None
    early_exit_threshold: float = 1.0
    exit_entropy_weight: float | int | None = None
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            heads = self.num_attention_heads
            self.head_dim = self.hidden_size // heads if heads > 0 else 0
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        if self.mean_backprop_depth is None:
            self.mean_backprop_depth = self.total_ut_steps
        check_rope_type(kwargs.get("rope_scaling") or self.rope_parameters)
        self.validate_architecture()  # here it raises a plain ValueError; `@strict` would wrap it
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: refuse impossible sizes."""
        check_sizes(
            self,
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "total_ut_steps",
            "mean_backprop_depth",
        )
        check_heads(self, "num_attention_heads")
        check_positive(self, "rms_norm_eps")
        if not 0 <= self.early_exit_threshold <= 1:
            raise ValueError(f"early_exit_threshold={self.early_exit_threshold} must be between 0 and 1.")
        if self.exit_entropy_weight is not None:
            if not 0 <= self.exit_entropy_weight < math.inf:
                raise ValueError(f"exit_entropy_weight={self.exit_entropy_weight} must be 0 or more, or None.")
            for name in ("total_ut_steps", "training_depth"):
                if getattr(self, name) == 1:
                    raise ValueError(
                        f"exit_entropy_weight={self.exit_entropy_weight} needs {name}=2 or more: a text of one "
                        "recurrence has one exit, and nothing for the gate to learn."
                    )
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act={self.hidden_act!r} is not supported: use 'silu'.")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries, but num_hidden_layers={self.num_hidden_layers}."
            )
        if other := sorted(set(self.layer_types) - {"full_attention"}):
            raise ValueError(f"layer_types holds {other[0]!r}: only 'full_attention' is supported.")


__all__ = ["OuroConfig"]

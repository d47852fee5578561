"""What the configs of looped models share: one Llama-like stack of layers, run several times on its own output."""

from huggingface_hub.dataclasses import strict

from ..compat import CACHE
from .rotary import check_rope_type
from .sizes import check_heads, check_positive, check_sizes
from .unrolled_config import UnrolledConfig


@strict
class LoopedConfig(UnrolledConfig):
    """A looped family's config inherits from it, maps `mean_recurrence` to its own name for the number of loops, and
    adds `vocab_size`, `hidden_size`, `intermediate_size`, `num_hidden_layers`, `num_attention_heads`,
    `max_position_embeddings` and `rms_norm_eps`.

    Raises:
        ValueError: a size is impossible; the message has its name and value.
    """

    keys_to_ignore_at_inference = [CACHE, "latents"]
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

    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    rope_parameters: dict | None = None
    mean_backprop_depth: int | None = None
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
        check_rope_type(kwargs.get("rope_scaling") or self.rope_parameters)
        self.validate_architecture()  # here it raises a plain ValueError; `@strict` would wrap it
        super().__post_init__(**kwargs)

    @property
    def trained_recurrences(self) -> int:
        """The number of loops, of the original training or of one's own, whichever is more."""
        return max(self.mean_recurrence, self.training_depth or 0)

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
            self.attribute_map["mean_recurrence"],
        )
        if self.mean_backprop_depth is not None:
            check_sizes(self, "mean_backprop_depth")
        check_heads(self, "num_attention_heads")
        check_positive(self, "rms_norm_eps")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act={self.hidden_act!r} is not supported: use 'silu'.")

"""Configuration of `ouro` checkpoints (Ouro-1.4B, Ouro-2.6B and their Thinking versions)."""

import math

from huggingface_hub.dataclasses import strict

from ..looped_config import LoopedConfig


@strict
class OuroConfig(LoopedConfig):
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
        mean_backprop_depth: how many of the last recurrences carry gradients in training; all when None. With fewer
            than there are, the embedding gets none, because only the first recurrence reads it.
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
    attribute_map = {"mean_recurrence": "total_ut_steps", "padded_vocab_size": "vocab_size"}
    default_theta = 1_000_000.0

    vocab_size: int = 49152
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    max_position_embeddings: int = 65536
    rms_norm_eps: float = 1e-6
    layer_types: list[str] | None = None
    total_ut_steps: int = 4
    early_exit_threshold: float = 1.0
    exit_entropy_weight: float | int | None = None

    def __post_init__(self, **kwargs):
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: refuse impossible sizes."""
        super().validate_architecture()
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
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries, but num_hidden_layers={self.num_hidden_layers}."
            )
        if other := sorted(set(self.layer_types) - {"full_attention"}):
            raise ValueError(f"layer_types holds {other[0]!r}: only 'full_attention' is supported.")


__all__ = ["OuroConfig"]

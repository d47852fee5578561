"""Configuration of Parcae checkpoints (arXiv 2604.12946)."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ...compat import CACHE
from ..sizes import check_heads, check_positive, check_sizes
from ..unrolled_config import UnrolledConfig

GATE_CHANNELS = 32
"""Channels of a layer's normed input that the gate of its value embedding reads."""

SUPPORTED: dict[str, tuple[Any, ...]] = {
    "injection_type": ("diagonal",),
    "block_class_name": ("TransformerPreNormBlock",),
    "norm_class_name": ("RMSNorm",),
    "mlp_class_name": ("BaseMLP",),
    "nonlin_name": ("ReLU2",),
    "init_strategy": ("scaled-zero",),
    "state_init": ("like-init",),
    "prelude_norm": (True,),
    "qk_norm": (True,),
    "qk_bias": (False,),
    "bias": (False,),
    "logit_softcap": (None,),
    "clip_qkv": (None,),
    "use_abacus": (False,),
    "debias_attention": (False,),
    "center_attention": (False,),
    "mup_model_scaling_factor": (1,),
}
"""Settings of the published config class that would change the model, and the values that the released files have."""


def refuse_unsupported(settings: dict[str, Any]) -> None:
    """ValueError that names every setting that differs from what the released checkpoints have."""
    found = [
        f"{name}={settings[name]!r} (supported: {', '.join(map(repr, values))})"
        for name, values in SUPPORTED.items()
        if name in settings and settings[name] not in values
    ]
    rope = settings.get("rope_settings") or {}
    for name, value in (("use_rope", True), ("rope_condense_ratio", 1)):
        if rope.get(name, value) != value:
            found.append(f"rope_settings[{name!r}]={rope[name]!r} (supported: {value!r})")
    if found:
        raise ValueError(
            f"Not supported for parcae: {'; '.join(found)}. The released checkpoints do not set this, and this package "
            "would compute something else. Use the code published with the checkpoint."
        )


@strict
class ParcaeConfig(UnrolledConfig):
    r"""Sizes and settings of a Parcae: prelude, core and coda, with diagonal injection and value embeddings.

    The field names are those of the Hub's config.json; `hidden_size`, `num_hidden_layers` and `max_position_embeddings`
    are aliases. The Hub's files have no `model_type`; they are recognised by their `_class_name`. The defaults are
    those of parcae-140m.

    Args:
        vocab_size: tokens; `padded_vocab_size` is the size of the embeddings.
        n_embd: channels of a latent state; at least 32, of which the gates of value embeddings read the first 32.
        num_attention_heads, num_key_value_heads, head_dim: attention shape; every query head has its own key head, and
            `n_embd` is divided among them.
        intermediate_size: channels inside the MLP.
        n_layers, n_layers_in_prelude, n_layers_in_recurrent_block, n_layers_in_coda: blocks of each part, and of all.
        mean_recurrence: recurrences when `num_steps` is not given, and the mean of the random depth in training.
        mean_backprop_depth: how many of the last recurrences carry gradients in training.
        training_depth, state_seed: fix depth and initial states of training steps; see `UnrolledConfig`.
        block_size: longest sequence.
        rope_settings: the Hub's: `rope_base`, beside `use_rope` and `rope_condense_ratio`, which change nothing.
        rope_parameters: transformers': `rope_theta` and `rope_type`, which must be "default"; overrides
            `rope_settings`.
        norm_eps: added to the mean square in norms with a weight. The norm of queries and keys adds the dtype's own.
        value_embed_layers: the layers (0-based over prelude, core and coda) with value embeddings; every second, so
            that the last has them, when None.
        ve_gate_layers: the layers with a gate for them; when None, as the published code counts them. A value embedding
            acts only where there is a gate.
        tie_embeddings: whether the head is the token embedding.
        state_channels: channels of the initial state that are drawn; they repeat to fill `n_embd`. Fewer than `n_embd`
            in a widened checkpoint only, which computes what its narrow original does.

    Raises:
        ValueError: a size is impossible, or a setting is none of `SUPPORTED`; the message has its name and value.
    """

    model_type = "parcae"
    published_class_name = "ParcaeConfig"
    keys_to_ignore_at_inference = [CACHE, "latents"]
    attribute_map = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "block_size",
    }
    base_model_tp_plan = {"wte": "embedding_rowwise"} | {
        f"{part}.*.mlp.{name}": style
        for part in ("prelude", "core_block", "coda")
        for name, style in (("fc", "colwise"), ("proj", "rowwise"))
    }

    vocab_size: int = 32768
    padded_vocab_size: int | None = None
    n_embd: int = 768
    num_attention_heads: int = 6
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 3072
    n_layers: int | None = None
    n_layers_in_prelude: int = 2
    n_layers_in_recurrent_block: int = 2
    n_layers_in_coda: int = 2
    mean_recurrence: int = 8
    mean_backprop_depth: int = 4
    block_size: int = 2048
    rope_settings: dict | None = None
    rope_parameters: dict | None = None
    norm_eps: float = 1e-5
    value_embed_layers: list[int] | None = None
    ve_gate_layers: list[int] | None = None
    tie_embeddings: bool | None = None
    tie_word_embeddings: bool = True
    state_channels: int | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        refuse_unsupported(kwargs | {"rope_settings": self.rope_settings})
        kwargs.pop("_class_name", None)
        self._take_aliases(kwargs)
        self._fill_sizes()
        self.validate_architecture()  # here it raises a plain ValueError; `@strict` would wrap it
        self._take_core_sizes(kwargs)
        rope = kwargs.get("rope_scaling") or self.rope_parameters or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ValueError(f"rope_type={kind!r} of rope_parameters is not supported for parcae: leave it out.")
        base = (self.rope_settings or {}).get("rope_base", 50000)
        # The base class turns it into `rope_parameters`.
        kwargs.setdefault("rope_theta", base)
        super().__post_init__(**kwargs)
        self.rope_settings = {
            "use_rope": True,
            "rope_condense_ratio": 1,
            "rope_base": self.rope_parameters["rope_theta"],
        }

    def _take_aliases(self, kwargs: dict[str, Any]) -> None:
        for alias, name in self.attribute_map.items():
            if (value := kwargs.pop(alias, None)) is not None:
                default = type(self).__dataclass_fields__[name].default
                if getattr(self, name) not in (default, value):
                    raise ValueError(
                        f"{name}={getattr(self, name)} and {alias}={value} are two names of one size: leave out one."
                    )
                setattr(self, name, value)

    def _fill_sizes(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            heads = self.num_attention_heads
            self.head_dim = self.n_embd // heads if heads > 0 else 0
        if self.padded_vocab_size is None:
            self.padded_vocab_size = self.vocab_size
        if self.tie_embeddings is None:
            self.tie_embeddings = self.tie_word_embeddings
        # The Hub's files have tie_embeddings; transformers reads tie_word_embeddings.
        self.tie_word_embeddings = self.tie_embeddings
        if self.state_channels is None:
            self.state_channels = self.n_embd
        layers = self.n_layers_in_prelude + self.n_layers_in_recurrent_block + self.n_layers_in_coda
        if self.n_layers is None:
            self.n_layers = layers
        if self.value_embed_layers is None:
            self.value_embed_layers = [layer for layer in range(layers) if layer % 2 == (layers - 1) % 2]
        if self.ve_gate_layers is None:
            self.ve_gate_layers = self._published_gates()

    def _published_gates(self) -> list[int]:
        """The layers with a gate in the published code, whose layer ids count the core once, or every recurrence."""
        prelude, core = self.n_layers_in_prelude, self.n_layers_in_recurrent_block
        coda = [prelude + core * self.mean_recurrence + layer for layer in range(self.n_layers_in_coda)]
        parity = (core * self.mean_backprop_depth - 1) % 2
        ids = [*range(prelude + core), *coda]
        return [layer for layer, number in enumerate(ids) if number % 2 == parity]

    def to_dict(self):
        """transformers' own, with the sizes under their usual names too, under which PEFT and others look for them."""
        return super().to_dict() | {alias: getattr(self, name) for alias, name in self.attribute_map.items()}

    def to_diff_dict(self):
        """transformers' own, for config.json, with every size under one name."""
        return {name: value for name, value in super().to_diff_dict().items() if name not in self.attribute_map}

    def validate_architecture(self):
        """Part of `@strict` validation: refuse impossible sizes."""
        check_sizes(
            self,
            "vocab_size",
            "n_embd",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "n_layers_in_recurrent_block",
            "mean_recurrence",
            "mean_backprop_depth",
            "block_size",
        )
        check_positive(self, "norm_eps")
        for name in ("n_layers_in_prelude", "n_layers_in_coda"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more.")
        if self.n_embd < GATE_CHANNELS:
            raise ValueError(
                f"n_embd={self.n_embd} must be at least {GATE_CHANNELS}: the gates of value embeddings read "
                "so many channels."
            )
        if self.state_channels < 1 or self.n_embd % self.state_channels:
            raise ValueError(f"state_channels={self.state_channels} must divide n_embd={self.n_embd}.")
        if self.padded_vocab_size < self.vocab_size:
            raise ValueError(
                f"padded_vocab_size={self.padded_vocab_size} is smaller than vocab_size={self.vocab_size}."
            )
        if self.num_key_value_heads != self.num_attention_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} must equal num_attention_heads="
                f"{self.num_attention_heads}: a value embedding has a value for every head."
            )
        check_heads(self, "num_attention_heads")
        if self.head_dim * self.num_attention_heads != self.n_embd:
            raise ValueError(
                f"n_embd={self.n_embd} must be num_attention_heads={self.num_attention_heads} times "
                f"head_dim={self.head_dim}: leave out head_dim, and choose a number of heads that divides n_embd."
            )
        layers = self.n_layers_in_prelude + self.n_layers_in_recurrent_block + self.n_layers_in_coda
        for name in ("value_embed_layers", "ve_gate_layers"):
            wrong = [layer for layer in getattr(self, name) if not 0 <= layer < layers]
            if wrong:
                raise ValueError(f"{name}={getattr(self, name)} names layers that are none of the {layers}: {wrong}.")

    def _take_core_sizes(self, kwargs: dict[str, Any]) -> None:
        """Take the core's own sizes out of `kwargs`.

        Raises:
            ValueError: they differ from the rest, as in no released checkpoint.
        """
        for name, own in (
            ("recurrent_embedding_dimension", "n_embd"),
            ("recurrent_intermediation_embedding_dimension", "intermediate_size"),
            ("recurrent_num_attention_heads", "num_attention_heads"),
        ):
            # Not kept: a size has one name.
            if (value := kwargs.pop(name, None)) not in (None, getattr(self, own)):
                raise ValueError(
                    f"{name}={value} differs from {own}={getattr(self, own)}: a core of another shape than the "
                    "prelude and coda is not supported. Use the code published with the checkpoint."
                )


__all__ = ["ParcaeConfig"]

"""Configuration of `huginn_raven` checkpoints (Huginn-0125 and the retrofitted Raven models)."""

import math
import re
from collections.abc import Iterable

from huggingface_hub.dataclasses import strict

from ...compat import CACHE
from ...settings.validation import nearest
from ..rotary import check_rope_type
from ..sizes import check_heads, check_positive, check_sizes
from ..unrolled_config import UnrolledConfig

LAYOUTS: dict[str, frozenset[str]] = {
    "huginn": frozenset({"norm_1", "norm_2", "norm_3", "norm_4", "qk_bias"}),
    "llama": frozenset({"norm_1", "norm_2"}),
    "olmo": frozenset({"norm_1", "norm_2", "q_norm", "k_norm"}),
}
"""The norms and biases of a block by layout; the weight matrices (Wqkv, proj, fc) have the same names in all."""

_MARKER = re.compile(r"(?:prelude|core_block|coda)\.\d+\.(?:\w+\.)*?(norm_\d+|\w+_norm|\w+_bias)(?:\.weight)?$")


def layout_of(names: Iterable[str]) -> str:
    """The layout of a checkpoint.

    Args:
        names: names of its tensors.

    Raises:
        ValueError: the blocks match no layout; lists what was found and what each layout has.
    """
    found = _markers(names)
    for layout, markers in LAYOUTS.items():
        if found == markers:
            return layout
    expected = "; ".join(f"{layout}: {', '.join(sorted(markers))}" for layout, markers in LAYOUTS.items())
    raise ValueError(
        f"The checkpoint's tensors match no layout of huginn_raven. Found in its blocks: "
        f"{', '.join(sorted(found)) or 'no norms at all'}. Expected: {expected}."
    )


def nearest_layout(names: Iterable[str]) -> str:
    """The layout whose norms and biases differ least from a checkpoint's."""
    found = _markers(names)
    return min(LAYOUTS, key=lambda layout: len(LAYOUTS[layout] ^ found))


def _markers(names: Iterable[str]) -> set[str]:
    return {match[1] for match in map(_MARKER.search, names) if match}


@strict
class RavenConfig(UnrolledConfig):
    r"""Sizes and settings of a recurrent-depth transformer: prelude, core, coda (arXiv 2502.05171, section 3).

    The field names are those of the Hub's config.json; `hidden_size`, `num_attention_heads`, `num_hidden_layers` and
    `max_position_embeddings` are aliases. `rope_theta` and `rope_scaling` are read too and become `rope_parameters`, as
    everywhere in transformers 5.

    Args:
        layout: the structure of a block: "huginn" (Huginn-0125), "llama" (made from Llama or TinyLlama) or "olmo" (made
            from OLMo-2; both arXiv 2511.07384). The Hub's files do not have it. None means "huginn" with `qk_bias`
            and "llama" with llama3 RoPE scaling; otherwise a checkpoint's tensors decide.
        vocab_size: tokens; `padded_vocab_size` (a multiple of 64 on the Hub) is the size of the embedding.
        n_embd: channels of a latent state.
        n_heads, num_key_value_heads, head_dim: attention shape.
        intermediate_size: channels inside the gated MLP.
        n_layers_in_prelude, n_layers_in_recurrent_block, n_layers_in_coda: blocks of each part.
        mean_recurrence: recurrences when `num_steps` is not given, and the mean of the random depth in training.
        mean_backprop_depth: how many of the last recurrences carry gradients in training.
        training_depth, state_seed: fix depth and initial states of training steps; see `UnrolledConfig`.
        block_size: longest sequence. In files of retrofitted checkpoints it may be the training length, beside a larger
            `max_position_embeddings`, which then is the limit, and becomes the value of both names.
        rope_base: base of the rotary embedding, if neither `rope_parameters` nor `rope_theta` is given.
        rope_parameters: `rope_theta`, `rope_type` ("default" or "llama3") and the type's parameters.
        qk_bias: whether queries and keys have a bias, as in the huginn layout and no other.
        init_values: `std` of the initial state and weights, `out_proj` std of output projections, `embedding` std,
            and `embed_scale`, the factor on embeddings and on the state start.
        state_channels: channels of the initial state that are drawn; they repeat to fill `n_embd`. Fewer than `n_embd`
            in a widened checkpoint only, which computes what its narrow original does.

    Raises:
        ValueError: a size is impossible; the message has its name and value.
    """

    model_type = "huginn_raven"
    keys_to_ignore_at_inference = [CACHE, "latents"]
    attribute_map = {
        "hidden_size": "n_embd",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "block_size",
    }
    # Attention is replicated: Wqkv packs three maps and qk_bias is per head, which no built-in style shards together.
    base_model_tp_plan = {"wte": "embedding_rowwise"} | {
        f"{part}.*.mlp.{name}": style
        for part in ("prelude", "core_block", "coda")
        for name, style in (("fc", "packed_colwise"), ("proj", "rowwise"))
    }

    layout: str | None = None
    vocab_size: int = 65536
    padded_vocab_size: int | None = None
    n_embd: int = 5280
    n_heads: int = 55
    n_layers: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int = 17920
    n_layers_in_prelude: int = 2
    n_layers_in_recurrent_block: int = 4
    n_layers_in_coda: int = 2
    mean_recurrence: int = 32
    mean_backprop_depth: int = 8
    block_size: int = 4096
    rope_base: int | float = 50000
    rope_parameters: dict | None = None
    norm_eps: float = 1e-6
    qk_bias: bool | None = None
    tie_embeddings: bool | None = None
    tie_word_embeddings: bool = True
    init_values: dict | None = None
    state_channels: int | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs):
        for alias, name in self.attribute_map.items():
            if (value := kwargs.pop(alias, None)) is not None:
                default = type(self).__dataclass_fields__[name].default
                is_training_length = name == "block_size" and self.block_size < value
                if getattr(self, name) not in (default, value) and not is_training_length:
                    raise ValueError(
                        f"{name}={getattr(self, name)} and {alias}={value} are two names of one size: leave out one."
                    )
                setattr(self, name, value)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.n_heads
        if self.head_dim is None:
            self.head_dim = self.n_embd // self.n_heads if self.n_heads > 0 else 0
        if self.padded_vocab_size is None:
            self.padded_vocab_size = self.vocab_size
        if self.tie_embeddings is None:
            self.tie_embeddings = self.tie_word_embeddings
        # The Hub's files have tie_embeddings; transformers reads tie_word_embeddings.
        self.tie_word_embeddings = self.tie_embeddings
        if self.state_channels is None:
            self.state_channels = self.n_embd
        if self.n_layers is None:
            self.n_layers = self.n_layers_in_prelude + self.n_layers_in_recurrent_block + self.n_layers_in_coda
        scaling = kwargs.get("rope_scaling") or self.rope_parameters
        check_rope_type(scaling)
        if self.qk_bias is None:
            self.qk_bias = self.layout in (None, "huginn")
        if self.layout is None:
            scaled = "llama3" in ((scaling or {}).get("rope_type"), (scaling or {}).get("type"))
            self.layout = "huginn" if self.qk_bias else "llama" if scaled else None
        if self.init_values is None and self.n_embd > 0:
            std = math.sqrt(2 / (5 * self.n_embd))
            depth = self.n_layers_in_prelude + self.n_layers_in_coda
            depth += self.n_layers_in_recurrent_block * self.mean_recurrence
            self.init_values = {
                "std": std,
                "out_proj": std / math.sqrt(2 * max(depth, 1)),
                "embedding": std,
                "embed_scale": math.sqrt(self.n_embd) if self.qk_bias else 1.0,
            }
        self.validate_architecture()  # here it raises a plain ValueError; `@strict` would wrap it
        # The base class turns these into `rope_parameters`.
        kwargs.setdefault("rope_theta", self.rope_base)
        super().__post_init__(**kwargs)
        self.rope_base = self.rope_parameters["rope_theta"]

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
            "n_heads",
            "num_key_value_heads",
            "intermediate_size",
            "n_layers_in_recurrent_block",
            "mean_recurrence",
            "mean_backprop_depth",
            "block_size",
        )
        check_positive(self, "rope_base", "norm_eps")
        for name in ("n_layers_in_prelude", "n_layers_in_coda"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be 0 or more.")
        if self.state_channels < 1 or self.n_embd % self.state_channels:
            raise ValueError(f"state_channels={self.state_channels} must divide n_embd={self.n_embd}.")
        if self.padded_vocab_size < self.vocab_size:
            raise ValueError(
                f"padded_vocab_size={self.padded_vocab_size} is smaller than vocab_size={self.vocab_size}."
            )
        check_heads(self, "n_heads")
        if self.layout is not None and self.layout not in LAYOUTS:
            raise ValueError(f"layout={self.layout!r} is unknown{nearest(self.layout, tuple(LAYOUTS))}.")
        if self.qk_bias != (self.layout == "huginn"):
            raise ValueError(
                f"layout={self.layout!r} does not fit qk_bias={self.qk_bias}: the huginn layout has a bias on "
                "queries and keys; llama and olmo have none."
            )
        if self.qk_bias and self.n_heads != self.num_key_value_heads:
            raise ValueError("qk_bias=True needs num_key_value_heads == n_heads: one tensor holds both biases.")
        for name in ("std", "embed_scale"):
            value = (self.init_values or {}).get(name)
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"init_values[{name!r}]={value!r} must be a positive number.")


__all__ = ["RavenConfig"]

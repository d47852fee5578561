"""Huginn and the Raven models: prelude, core and coda (arXiv 2502.05171, section 3; arXiv 2511.07384)."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...cache import Placement, Slots
from ...compat import GenericForSequenceClassification, GenericForTokenClassification, GradientCheckpointingLayer
from ...compat import initialization as init
from ...randomness import STATE, keyed_truncated_normal
from ..attention import rotary_attention
from ..attention_choice import ChosenAttention
from ..loading import HEADS, HUB_KEYWORDS, CheckedLoading, ClassifierLoading, stored_config, tensor_names
from ..norm import RMSNorm
from ..rotary import rotate_halves, rotate_pairs
from ..special_tokens import correct_token_id, tokenizer_ids
from ..three_parts import ThreePartLanguageModel, ThreePartModel
from ..widening import Widening
from .configuration_huginn_raven import RavenConfig, layout_of, nearest_layout


class RavenAttention(nn.Module):
    """Causal attention, grouped if there are fewer keys than queries; one matrix makes queries, keys and values.

    A layout defines what happens to queries and keys before RoPE (`prepare`) and how RoPE rotates them (`rotate`).
    """

    rotate = staticmethod(rotate_halves)

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.num_key_value_heads, config.head_dim
        self.Wqkv = nn.Linear(config.n_embd, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.proj = nn.Linear(self.heads * self.head_dim, config.n_embd, bias=False)

    def prepare(self, qk: torch.Tensor) -> torch.Tensor:
        """Queries and keys before RoPE, [batch, width, heads + kv_heads, head_dim]."""
        return qk

    def forward(self, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots):
        batch, width, _ = x.shape
        qkv = self.Wqkv(x).view(batch, width, -1, self.head_dim)
        rotated = self.heads + self.kv_heads
        qk, value = self.prepare(qkv[:, :, :rotated]), qkv[:, :, rotated:]
        y = rotary_attention(qk, value, self.heads, self.rotate, at, self.layer, slot)
        return self.proj(y.type_as(x))


class HuginnAttention(RavenAttention):
    """A bias on queries and keys; RoPE rotates neighbouring channels."""

    rotate = staticmethod(rotate_pairs)

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__(config, layer)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.heads, self.head_dim))

    def prepare(self, qk: torch.Tensor) -> torch.Tensor:
        return qk + self.qk_bias.view(-1, self.head_dim)


class OlmoAttention(RavenAttention):
    """One norm over the channels of all query heads together, and one over those of all key heads."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__(config, layer)
        self.q_norm = RMSNorm(self.heads * self.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(self.kv_heads * self.head_dim, config.norm_eps)

    def prepare(self, qk: torch.Tensor) -> torch.Tensor:
        query, key = self.q_norm(qk[:, :, : self.heads].flatten(2)), self.k_norm(qk[:, :, self.heads :].flatten(2))
        return torch.cat((query, key), dim=-1).view(qk.shape)


class RavenMLP(nn.Module):
    """silu(gate) * up, then a projection; gate and up share one matrix."""

    def __init__(self, config: RavenConfig):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 2 * config.intermediate_size, bias=False)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.fc(x).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)


class HuginnBlock(GradientCheckpointingLayer):
    """Sandwich: a norm before each part and one after each residual sum."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.norm_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.attn = HuginnAttention(config, layer)
        self.norm_2 = RMSNorm(config.n_embd, config.norm_eps)
        self.norm_3 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = RavenMLP(config)
        self.norm_4 = RMSNorm(config.n_embd, config.norm_eps)

    def forward(self, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots = 0):
        x = self.norm_2(self.attn(self.norm_1(x), at, slot) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class LlamaBlock(GradientCheckpointingLayer):
    """Pre-norm: a norm before each part."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.norm_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.attn = RavenAttention(config, layer)
        self.norm_2 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = RavenMLP(config)

    def forward(self, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots = 0):
        x = x + self.attn(self.norm_1(x), at, slot)
        return x + self.mlp(self.norm_2(x))


class OlmoBlock(GradientCheckpointingLayer):
    """Post-norm: a norm on the output of each part."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.attn = OlmoAttention(config, layer)
        self.norm_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = RavenMLP(config)
        self.norm_2 = RMSNorm(config.n_embd, config.norm_eps)

    def forward(self, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots = 0):
        x = x + self.norm_1(self.attn(x, at, slot))
        return x + self.norm_2(self.mlp(x))


TABLE = r"freqs_cis"
"""Huginn checkpoints store the rotation table as a buffer; here it is computed from the positions."""

BLOCKS = {"huginn": HuginnBlock, "llama": LlamaBlock, "olmo": OlmoBlock}
"""The block class of each layout."""


class RavenPreTrainedModel(CheckedLoading, ChosenAttention, PreTrainedModel):
    config: RavenConfig
    config_class = RavenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = [block.__name__ for block in BLOCKS.values()]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _can_compile_fullgraph = False
    _keys_to_ignore_on_load_unexpected = [TABLE]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """transformers' own `from_pretrained`, with the layout of the tensors.

        Raises:
            ValueError: the tensors match no layout or do not fit the config; lists found and expected. With
                `output_loading_info=True` they are returned instead, as they fit the config's layout, or the nearest.
        """
        path = pretrained_model_name_or_path
        names = tensor_names(path, kwargs)
        if names is not None:
            try:
                layout = layout_of(names)
            except ValueError:
                if not kwargs.get("output_loading_info"):
                    raise
                stored = config if isinstance(config, PreTrainedConfig) else cls._stored(path, kwargs)
                layout = stored.layout or nearest_layout(names)
            if isinstance(config, PreTrainedConfig):
                config = copy.deepcopy(config)
                config.layout = layout
                config.validate_architecture()
            else:
                kwargs.setdefault("layout", layout)
        return super().from_pretrained(path, *args, config=config, **kwargs)

    @classmethod
    def _stored(cls, path, keywords) -> RavenConfig:
        return cls.config_class.from_pretrained(path, **{key: keywords[key] for key in HUB_KEYWORDS if key in keywords})

    def correct_special_tokens(self, path, keywords):
        """Use the tokenizer's ids if the published config.json has those of another vocabulary.

        The retrofitted checkpoints were published with Huginn's ids. A config.json with a layout was written by this
        class, so its ids are right.
        """
        stored = stored_config(path, keywords)
        if self.config.layout == "huginn" or stored is None or stored.get("layout") is not None:
            return
        for name, right in tokenizer_ids(path, keywords).items():
            stale = getattr(self.config, name)
            if right not in (stale if isinstance(stale, list) else [stale]):
                correct_token_id(self, name, right, path)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """transformers' own, which also updates `padded_vocab_size`."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.padded_vocab_size = embeddings.weight.shape[0]
        return embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Takase initialisation: std sqrt(2 / 5d), output projections scaled down by the effective depth."""
        values = self.config.init_values
        if isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=values.get("embedding", values["std"]))
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=values["std"])
        if isinstance(module, (RavenAttention, RavenMLP)):
            init.trunc_normal_(module.proj.weight, std=values.get("out_proj", values["std"]))
        if isinstance(module, HuginnAttention):
            init.zeros_(module.qk_bias)


class RavenModel(ThreePartModel, RavenPreTrainedModel):
    """A model of any layout without its head."""

    _keys_to_ignore_on_load_unexpected = [TABLE, *HEADS]

    def __init__(self, config: RavenConfig):
        if config.layout is None:
            raise ValueError(
                "layout=None does not distinguish Llama's layout from OLMo's, and there are no tensors to decide it. "
                "Set layout='llama' or layout='olmo'."
            )
        super().__init__(config)
        prelude, core, coda = (
            config.n_layers_in_prelude,
            config.n_layers_in_recurrent_block,
            config.n_layers_in_coda,
        )
        block = BLOCKS[config.layout]
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.prelude = nn.ModuleList(block(config, layer) for layer in range(prelude))
        self.adapter = nn.Linear(2 * config.n_embd, config.n_embd, bias=False)
        self.core_block = nn.ModuleList(block(config, prelude + layer) for layer in range(core))
        self.coda = nn.ModuleList(block(config, prelude + core + layer) for layer in range(coda))
        self.ln_f = RMSNorm(config.n_embd, config.norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    # --- the verbs ---

    def embed(self, input_ids, at, inputs_embeds=None):
        self.rotate(at)
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        x = x * self.config.init_values["embed_scale"]
        for block in self.prelude:
            x = block(x, at)
        return x

    def initialize_state(self, e, positions, seeds, scale=1.0):
        if scale == 0.0:
            return torch.zeros_like(e)
        values = self.config.init_values
        channels = self.config.state_channels
        noise = keyed_truncated_normal(seeds, positions, STATE, channels)
        noise = (noise * (values["std"] * scale * values["embed_scale"])).type_as(e)
        return noise.repeat(1, 1, e.shape[-1] // channels) if channels < e.shape[-1] else noise

    def recur(self, s, e, at, depth):
        self.rotate(at)
        slot = at.slot(depth)
        x = self.adapter(torch.cat((s, e.to(s.device)), dim=-1))
        for block in self.core_block:
            x = block(x, at, slot)
        return x

    def read_out(self, s, at, readout=0, kept=slice(None)):
        self.rotate(at)
        x = self.latents(s)
        for block in self.coda:
            x = block(x, at, readout)
        return self.ln_f(x[:, kept])

    # --- forward() ---

    def latents(self, s: torch.Tensor) -> torch.Tensor:
        """The input of the coda: normed states in the huginn layout, which applies ln_f twice; otherwise the states."""
        return self.ln_f(s) if self.config.layout == "huginn" else s

    # A graph of torch.compile has one depth, so it begins after the draw.
    @torch.compiler.disable
    def sample_depth(self) -> int:
        """A random number of recurrences for training: 1 + Poisson(log-normal) with mean about `mean_recurrence`.

        Section 3.3 of arXiv 2502.05171, sigma = 0.5; drawn from torch's global generator.
        """
        sigma = 0.5
        mu = math.log(self.config.mean_recurrence) - sigma**2 / 2
        rate = torch.empty((), dtype=torch.float32).log_normal_(mu, sigma)
        return int(torch.poisson(rate)) + 1


class RavenLanguageModel(ThreePartLanguageModel, RavenPreTrainedModel):
    """A language model of any layout."""

    widening = Widening(
        sizes=("n_embd", "n_heads", "num_key_value_heads", "intermediate_size"),
        packed_outputs={"Wqkv.weight": 3, "fc.weight": 2},
        packed_inputs={"adapter.weight": 2},
    )
    model_class = RavenModel


class RavenForSequenceClassification(ClassifierLoading, GenericForSequenceClassification, RavenPreTrainedModel):
    """RavenModel with transformers' head for a label or a reward of a whole text, read at its last token."""

    base_model_prefix = RavenPreTrainedModel.base_model_prefix


class RavenForTokenClassification(ClassifierLoading, GenericForTokenClassification, RavenPreTrainedModel):
    """RavenModel with transformers' head for a label of every token."""

    base_model_prefix = RavenPreTrainedModel.base_model_prefix


__all__ = [
    "RavenConfig",
    "RavenForSequenceClassification",
    "RavenForTokenClassification",
    "RavenLanguageModel",
    "RavenModel",
    "RavenPreTrainedModel",
]

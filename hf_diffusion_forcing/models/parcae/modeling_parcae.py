"""Parcae: prelude, core and coda, with diagonal injection and value embeddings (arXiv 2604.12946)."""

import math
import re

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from ...cache import Placement, Slots
from ...compat import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
    WeightRenaming,
    register_checkpoint_conversion_mapping,
)
from ...compat import initialization as init
from ...randomness import STATE, keyed_truncated_normal
from ..attention import project, rotary_attention
from ..attention_choice import ChosenAttention
from ..loading import HEADS, CheckedLoading, ClassifierLoading
from ..norm import RMSNorm
from ..pickled import PickledLoading
from ..rotary import rotate_pairs
from ..three_parts import ThreePartLanguageModel, ThreePartModel
from ..widening import Widening
from .configuration_parcae import GATE_CHANNELS, ParcaeConfig


def rotate_and_norm(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """RoPE on neighbouring channels in float32, then an RMSNorm of each head, without a weight.

    Args:
        x: queries and keys, [batch, width, heads, head_dim].
        rotary: complex64 [batch, width, 1, head_dim / 2].

    Returns:
        Shaped as x, in its dtype, whose own epsilon the norm adds.
    """
    return F.rms_norm(rotate_pairs(x, rotary).type_as(x), x.shape[-1:])


class ParcaeAttention(nn.Module):
    """Causal attention; in layers with a gate, values also have the token's value embedding."""

    def __init__(self, config: ParcaeConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_k = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_v = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        if layer in config.ve_gate_layers:
            self.ve_gate = nn.Linear(GATE_CHANNELS, config.num_attention_heads, bias=False)

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None, at: Placement, slot: int | torch.Tensor | Slots):
        qk, value, heads = project(x, self.c_q, self.c_k, self.c_v, self.head_dim)
        if extra is not None:
            gate = 2 * torch.sigmoid(self.ve_gate(x[..., :GATE_CHANNELS]))
            value = value + gate[..., None] * extra.to(value.device).view(value.shape)
        y = rotary_attention(qk, value, heads, rotate_and_norm, at, self.layer, slot)
        return self.c_proj(y.type_as(x))


class ParcaeMLP(nn.Module):
    """Half the square of relu, without a gate."""

    def __init__(self, config: ParcaeConfig):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, config.intermediate_size, bias=False)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(0.5 * F.relu(self.fc(x)).square())


class ParcaeBlock(GradientCheckpointingLayer):
    """Pre-norm: a norm before each part."""

    def __init__(self, config: ParcaeConfig, layer: int):
        super().__init__()
        self.norm_1 = RMSNorm(config.n_embd, config.norm_eps)
        self.attn = ParcaeAttention(config, layer)
        self.norm_2 = RMSNorm(config.n_embd, config.norm_eps)
        self.mlp = ParcaeMLP(config)

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None, at: Placement, slot: int | torch.Tensor | Slots = 0):
        x = x + self.attn(self.norm_1(x), extra, at, slot)
        return x + self.mlp(self.norm_2(x))


class DiagonalInjection(nn.Module):
    """s <- decay * s + dt * (e B^T), with dt = softplus(dt_bias) and decay = exp(-dt * exp(A_log)) of each channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.A_log = nn.Parameter(torch.empty(channels))
        self.dt_bias = nn.Parameter(torch.empty(channels))
        self.B = nn.Parameter(torch.empty(channels, channels))

    def forward(self, s: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        dt = F.softplus(self.dt_bias.float())
        decay = torch.exp(-dt * self.A_log.float().exp())
        return decay.type_as(s) * s + dt.type_as(s) * F.linear(e.to(s.device), self.B)


VALUE_EMBEDS = re.compile(r"value_embeds\.(\d+)\.weight$")
TABLE = r"freqs_cis"
"""The published checkpoints store the rotation table as a buffer; here it is computed from the positions."""

register_checkpoint_conversion_mapping(
    ParcaeConfig.model_type, [WeightRenaming(r"^value_embeds\.", "transformer.value_embeds.")]
)


class ParcaePreTrainedModel(PickledLoading, CheckedLoading, ChosenAttention, PreTrainedModel):
    config: ParcaeConfig
    config_class = ParcaeConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ParcaeBlock", "DiagonalInjection"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _can_compile_fullgraph = False
    _keys_to_ignore_on_load_unexpected = [TABLE]

    @classmethod
    def check_names(cls, names, config):
        """ValueError unless a checkpoint has value embeddings for the config's layers."""
        found = sorted(int(match[1]) for match in map(VALUE_EMBEDS.search, names) if match)
        # (Where there are none, the list of all missing tensors says more.)
        if found and found != sorted(config.value_embed_layers):
            layers = (config.n_layers_in_prelude, config.n_layers_in_recurrent_block, config.n_layers_in_coda)
            raise ValueError(
                f"The checkpoint has value embeddings for layers {found}, and its config.json, of "
                f"{' + '.join(map(str, layers))} layers, needs them for {sorted(config.value_embed_layers)}. Check "
                "n_layers_in_prelude, n_layers_in_recurrent_block and n_layers_in_coda: the config.json is of another "
                "checkpoint. (Embeddings that follow another rule load with value_embed_layers in config.json.)"
            )

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """transformers' own, which also resizes the value embeddings and updates `padded_vocab_size`.

        A new token's value embeddings are the mean of those there are.
        """
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        tokens = self.config.padded_vocab_size = embeddings.num_embeddings
        for each in self.base_model.value_embeds.values():
            weight = each.weight.data
            new = weight.mean(dim=0, keepdim=True).expand(max(tokens - len(weight), 0), -1)
            each.weight = nn.Parameter(torch.cat((weight[:tokens], new)))
            each.num_embeddings = tokens
        return embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights of std sqrt(2 / 5d), output projections scaled down by the effective depth.

        The injection starts with time scales from one recurrence to ten, and the identity.
        """
        config = self.config
        std = math.sqrt(2 / (5 * config.n_embd))
        depth = config.n_layers_in_prelude + config.n_layers_in_coda
        depth += config.n_layers_in_recurrent_block * config.mean_recurrence
        if isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, (nn.Embedding, nn.Linear)):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, DiagonalInjection):
            dt = torch.logspace(-1, 0, config.n_embd)
            init.zeros_(module.A_log)
            init.copy_(module.dt_bias, dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
            init.eye_(module.B)
        if isinstance(module, ParcaeAttention):
            init.trunc_normal_(module.c_proj.weight, std=std / math.sqrt(2 * depth))
        elif isinstance(module, ParcaeMLP):
            init.trunc_normal_(module.proj.weight, std=std / math.sqrt(2 * depth))


class ParcaeModel(ThreePartModel, ParcaePreTrainedModel):
    """A Parcae without its head."""

    reads_token_ids = True
    _keys_to_ignore_on_load_unexpected = [TABLE, *HEADS]

    def __init__(self, config: ParcaeConfig):
        super().__init__(config)
        prelude, core, coda = (
            config.n_layers_in_prelude,
            config.n_layers_in_recurrent_block,
            config.n_layers_in_coda,
        )
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.value_embeds = nn.ModuleDict(
            {str(layer): nn.Embedding(config.padded_vocab_size, config.n_embd) for layer in config.value_embed_layers}
        )
        self.prelude = nn.ModuleList(ParcaeBlock(config, layer) for layer in range(prelude))
        self.ln_prelude = RMSNorm(config.n_embd, config.norm_eps)
        self.adapter = DiagonalInjection(config.n_embd)
        self.core_block = nn.ModuleList(ParcaeBlock(config, prelude + layer) for layer in range(core))
        self.C = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.coda = nn.ModuleList(ParcaeBlock(config, prelude + core + layer) for layer in range(coda))
        self.ln_f = RMSNorm(config.n_embd, config.norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value

    def extra(self, layer: int, at: Placement) -> torch.Tensor | None:
        """The value embeddings of a pass's tokens in a layer, [batch, width, channels]; None in a layer without."""
        if str(layer) not in self.value_embeds or layer not in self.config.ve_gate_layers:
            return None
        return self.value_embeds[str(layer)](at.ids)

    def run(self, blocks: nn.ModuleList, x: torch.Tensor, at: Placement, slot: int | torch.Tensor | Slots = 0):
        """Some blocks, one after the other."""
        self.rotate(at)
        for block in blocks:
            x = block(x, self.extra(block.attn.layer, at), at, slot)
        return x

    # --- the verbs ---

    def embed(self, input_ids, at, inputs_embeds=None):
        at.ids = input_ids
        return self.ln_prelude(self.run(self.prelude, self.wte(input_ids), at))

    def initialize_state(self, e, positions, seeds, scale=1.0):
        if scale == 0.0:
            return torch.zeros_like(e)
        channels = self.config.state_channels
        noise = keyed_truncated_normal(seeds, positions, STATE, channels)
        noise = (noise * (math.sqrt(2 / (5 * channels)) * scale)).type_as(e)
        return noise.repeat(1, 1, e.shape[-1] // channels) if channels < e.shape[-1] else noise

    def recur(self, s, e, at, depth):
        return self.run(self.core_block, self.adapter(s, e), at, at.slot(depth))

    def read_out(self, s, at, readout=0, kept=slice(None)):
        return self.ln_f(self.run(self.coda, self.C(s), at, readout)[:, kept])

    # A graph of torch.compile has one depth, so it begins after the draw.
    @torch.compiler.disable
    def sample_depth(self) -> int:
        """A random number of recurrences for training: Poisson with mean `mean_recurrence`, at least 1.

        Drawn from torch's global generator.
        """
        rate = torch.tensor(self.config.mean_recurrence, dtype=torch.float32)
        return max(int(torch.poisson(rate)), 1)


class ParcaeLanguageModel(ThreePartLanguageModel, ParcaePreTrainedModel):
    """A Parcae language model.

    A token reaches the state twice at every recurrence: by the injected embedding e, and by the value embeddings of the
    core's attention, which are always those of the pass's ids.
    """

    reads_token_ids = True
    widening = Widening(
        sizes=("n_embd", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
        fixed_inputs=("ve_gate.weight",),
    )
    model_class = ParcaeModel


class ParcaeForSequenceClassification(ClassifierLoading, GenericForSequenceClassification, ParcaePreTrainedModel):
    """ParcaeModel with transformers' head for a label or a reward of a whole text, read at its last token."""

    base_model_prefix = ParcaePreTrainedModel.base_model_prefix


class ParcaeForTokenClassification(ClassifierLoading, GenericForTokenClassification, ParcaePreTrainedModel):
    """ParcaeModel with transformers' head for a label of every token."""

    base_model_prefix = ParcaePreTrainedModel.base_model_prefix


__all__ = [
    "ParcaeConfig",
    "ParcaeForSequenceClassification",
    "ParcaeForTokenClassification",
    "ParcaeLanguageModel",
    "ParcaeModel",
    "ParcaePreTrainedModel",
]

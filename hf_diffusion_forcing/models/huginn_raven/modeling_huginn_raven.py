"""Huginn: prelude, core and coda of sandwich-norm blocks (arXiv 2502.05171, section 3)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...cache import NoCache, Placement, RecurrentDepthCache, absolute_positions
from ...generation.mixin import RecurrentDepthGenerationMixin
from ...randomness import STATE, keyed_truncated_normal, row_seeds
from ..interface import RecurrentDepthInterface
from .configuration_huginn_raven import RavenConfig


@dataclass
class RavenOutput(CausalLMOutputWithPast):
    """`CausalLMOutputWithPast` and the latents the coda read.

    Attributes:
        latents: [batch, width, n_embd], ln_f of the last recurrence's state.
    """

    latents: torch.FloatTensor | None = None


class RavenRMSNorm(nn.Module):
    """RMSNorm in float32; the weight multiplies after the cast back."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float32:  # nothing to cast back, so the fused norm is the same sum
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).type_as(x) * self.weight


def rotate_pairs(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotate neighbouring channel pairs.

    Args:
        x: [batch, width, heads, head_dim].
        rotary: complex64 [batch, width, 1, head_dim / 2].

    Returns:
        float32, shaped as x.
    """
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotary).view(x.shape)


class RavenAttention(nn.Module):
    """Causal attention with a bias on queries and keys before RoPE."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.n_heads, config.num_key_value_heads, config.head_dim
        self.Wqkv = nn.Linear(config.n_embd, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.proj = nn.Linear(self.heads * self.head_dim, config.n_embd, bias=False)
        self.qk_bias = nn.Parameter(torch.zeros(2, 1, self.heads, self.head_dim))

    def forward(self, x: torch.Tensor, cache: RecurrentDepthCache | NoCache, placed: Placement, slot: int):
        batch, width, _ = x.shape
        qkv = self.Wqkv(x).view(batch, width, -1, self.head_dim)
        rotated = self.heads + self.kv_heads
        qk, value = qkv[:, :, :rotated], qkv[:, :, rotated:]
        qk = qk + self.qk_bias.view(rotated, self.head_dim)
        # Processors attend from few positions up to six times as fast in float32 as in bfloat16; the keys and values
        # they keep are float32 then. (The bias lifts qk out of autocast; the cache holds one dtype in any case.)
        dtype = torch.float32 if qk.device.type == "cpu" and qk.itemsize < 4 else qk.dtype
        qk, value = rotate_pairs(qk, placed.rotary).to(dtype), value.to(dtype)
        query, key = qk[:, :, : self.heads], qk[:, :, self.heads :]
        y = cache.attend(self.layer, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), slot)
        return self.proj(y.transpose(1, 2).flatten(2).type_as(x))


class RavenMLP(nn.Module):
    """silu(gate) * up, then a projection; gate and up are one map."""

    def __init__(self, config: RavenConfig):
        super().__init__()
        self.fc = nn.Linear(config.n_embd, 2 * config.intermediate_size, bias=False)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.fc(x).chunk(2, dim=-1)
        return self.proj(F.silu(gate) * up)


class RavenBlock(GradientCheckpointingLayer):
    """Sandwich block: a norm before and after the residual sum."""

    def __init__(self, config: RavenConfig, layer: int):
        super().__init__()
        self.norm_1 = RavenRMSNorm(config.n_embd, config.norm_eps)
        self.attn = RavenAttention(config, layer)
        self.norm_2 = RavenRMSNorm(config.n_embd, config.norm_eps)
        self.norm_3 = RavenRMSNorm(config.n_embd, config.norm_eps)
        self.mlp = RavenMLP(config)
        self.norm_4 = RavenRMSNorm(config.n_embd, config.norm_eps)

    def forward(self, x: torch.Tensor, cache: RecurrentDepthCache | NoCache, placed: Placement, slot: int = 0):
        x = self.norm_2(self.attn(self.norm_1(x), cache, placed, slot) + x)
        return self.norm_4(self.mlp(self.norm_3(x)) + x)


class RavenPreTrainedModel(PreTrainedModel):
    config: RavenConfig
    config_class = RavenConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RavenBlock"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _can_compile_fullgraph = False
    # Huginn checkpoints store the rotation table as a buffer; here it is computed from the positions.
    _keys_to_ignore_on_load_unexpected = [r"freqs_cis"]

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """transformers' own; the padded size of the vocabulary follows."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.padded_vocab_size = embeddings.weight.shape[0]
        return embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Takase initialisation: std sqrt(2 / 5d), output projections scaled down by the effective depth."""
        values = self.config.init_values
        if isinstance(module, RavenRMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.trunc_normal_(module.weight, std=values.get("embedding", values["std"]))
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=values["std"])
        if isinstance(module, (RavenAttention, RavenMLP)):
            init.trunc_normal_(module.proj.weight, std=values.get("out_proj", values["std"]))
        if isinstance(module, RavenAttention):
            init.zeros_(module.qk_bias)


class RavenModel(RavenPreTrainedModel):
    """The parts, without the head. `RavenForCausalLM` puts them to work."""

    def __init__(self, config: RavenConfig):
        super().__init__(config)
        prelude, core, coda = (
            config.n_layers_in_prelude,
            config.n_layers_in_recurrent_block,
            config.n_layers_in_coda,
        )
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        self.prelude = nn.ModuleList(RavenBlock(config, layer) for layer in range(prelude))
        self.adapter = nn.Linear(2 * config.n_embd, config.n_embd, bias=False)
        self.core_block = nn.ModuleList(RavenBlock(config, prelude + layer) for layer in range(core))
        self.coda = nn.ModuleList(RavenBlock(config, prelude + core + layer) for layer in range(coda))
        self.ln_f = RavenRMSNorm(config.n_embd, config.norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.wte = value


class RavenForCausalLM(RavenPreTrainedModel, RecurrentDepthInterface, RecurrentDepthGenerationMixin):
    """A Huginn language model that decodes by any of this package's samplers."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: RavenConfig):
        super().__init__(config)
        self.transformer = RavenModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.post_init()
        self.generation_config = self.own_generation_config()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.transformer.wte = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    # --- the verbs ---

    def _placed(self, positions: torch.Tensor, cache: RecurrentDepthCache | NoCache) -> Placement:
        """The placement of `positions`, with the rotation of its queries and keys; made once per positions tensor."""
        placed = cache.placement
        if placed is None or placed.positions is not positions:
            placed = cache.place(positions)
        if placed.rotary is None:
            pairs = torch.arange(0, self.config.head_dim, 2, device=positions.device).float() / self.config.head_dim
            angles = positions.clamp_min(0)[..., None].float() / self.config.rope_base**pairs
            placed.rotary = torch.polar(torch.ones_like(angles), angles)[:, :, None]
        return placed

    def embed(self, input_ids, positions, cache):
        placed = self._placed(positions, cache)
        x = self.transformer.wte(input_ids) * self.config.init_values["embed_scale"]
        for block in self.transformer.prelude:
            x = block(x, cache, placed)
        return x

    def initialize_state(self, e, positions, seeds, scale=1.0):
        if scale == 0.0:
            return torch.zeros_like(e)
        values = self.config.init_values
        channels = self.config.state_channels
        noise = keyed_truncated_normal(seeds, positions, STATE, channels)
        noise = (noise * (values["std"] * scale * values["embed_scale"])).type_as(e)
        return noise.repeat(1, 1, e.shape[-1] // channels) if channels < e.shape[-1] else noise

    def recur(self, s, e, positions, cache, depth):
        placed = self._placed(positions, cache)
        slot = cache.slot(depth)
        x = self.transformer.adapter(torch.cat((s, e.to(s.device)), dim=-1))
        for block in self.transformer.core_block:
            x = block(x, cache, placed, slot)
        return x

    def decode(self, s, positions, cache, readout=0, logits_to_keep=0):
        placed = self._placed(positions, cache)
        x = self.transformer.ln_f(s)
        for block in self.transformer.coda:
            x = block(x, cache, placed, readout)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return self.lm_head(self.transformer.ln_f(x[:, kept]))

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        config = self.config
        return RecurrentDepthCache(
            config.n_layers_in_prelude,
            config.n_layers_in_recurrent_block,
            config.n_layers_in_coda,
            num_steps,
            kv_sharing,
            capacity,
        )

    # --- forward: embed, num_steps x recur, decode ---

    def sample_depth(self) -> int:
        """A random number of recurrences for training: 1 + Poisson(log-normal) with mean about `mean_recurrence`.

        Section 3.3 of arXiv 2502.05171, sigma = 0.5; drawn from torch's global generator.
        """
        sigma = 0.5
        mu = math.log(self.config.mean_recurrence) - sigma**2 / 2
        rate = torch.empty(()).log_normal_(mu, sigma)
        return int(torch.poisson(rate)) + 1

    def unroll(self, s, e, positions, cache, num_steps: int, on_recurrence=None) -> torch.Tensor:
        """`num_steps` recurrences. In training only the last `mean_backprop_depth` carry gradients."""
        truncated = num_steps - self.config.mean_backprop_depth if self.training else 0
        for depth in range(num_steps):
            with torch.set_grad_enabled(torch.is_grad_enabled() and depth >= truncated):
                before, s = s, self.recur(s, e, positions, cache, depth)
            if on_recurrence is not None:
                on_recurrence(s, before)
        return s

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: RecurrentDepthCache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        num_steps: int | None = None,
        state_scale: float = 1.0,
        seeds: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        on_recurrence: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> RavenOutput | tuple:
        """Logits of every position after `num_steps` recurrences.

        Args:
            input_ids: int64 [batch, width].
            attention_mask: [batch, columns seen so far + width], 1 for real tokens; padding may stand on either side.
            past_key_values: a cache that holds the earlier columns.
            labels: int64 [batch, width]; -100 is ignored; gives `loss` (shifted cross-entropy).
            use_cache: make a cache when none is given; by default only where no gradients are wanted.
            num_steps: recurrences; `mean_recurrence` by default, random (`sample_depth`) while training.
            state_scale: factor on the state start; 0.0 starts from zeros.
            seeds: int64 [batch], seeds of the state start; drawn from torch's global generator by default.
            logits_to_keep: last columns to compute logits for; 0 is all.
            on_recurrence: called after every recurrence with the states [batch, width, channels] and those before it.

        Raises:
            ValueError: `num_steps` < 1, a sequence longer than `block_size`, a mask of another shape, an argument it
                does not take.
        """
        config = self.config
        for name, value in kwargs.items():
            # Trainer passes the one for the loss; generate() hands on the tokenizer it got for stop strings.
            if (
                name not in ("num_items_in_batch", "tokenizer", "assistant_tokenizer")
                and value is not None
                and value is not False
            ):
                reason = "positions are counted from attention_mask" if name == "position_ids" else "leave it out"
                raise ValueError(f"forward() does not take {name}: {reason}.")
        if num_steps is None:
            num_steps = self.sample_depth() if self.training else config.mean_recurrence
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps} must be at least 1.")
        batch, width = input_ids.shape
        if use_cache is None:
            # Entries are written in place, which autograd does not allow: no cache where gradients are wanted.
            use_cache = config.use_cache and not self.training and not torch.is_grad_enabled()
        if past_key_values is None and use_cache:
            past_key_values = self.new_cache(num_steps, "none")
        cache = past_key_values if past_key_values is not None else NoCache()
        seen = cache.columns if past_key_values is not None else 0
        if seen + width > config.block_size:
            raise ValueError(
                f"The sequence has {seen + width} tokens, more than block_size={config.block_size}: shorten the prompt."
            )

        if attention_mask is not None and attention_mask.shape != (batch, seen + width):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}; with {seen} cached columns and input_ids of "
                f"shape {(batch, width)} it must be {(batch, seen + width)}."
            )
        positions, start = absolute_positions(attention_mask, seen, (batch, width), input_ids.device)
        # The same tensor in every verb below: its placement is made once.
        cache.place(positions, start=start, extent=seen + width)
        if seeds is None:
            seeds = row_seeds(None, batch, input_ids.device)

        e = self.embed(input_ids, positions, cache)
        s = self.initialize_state(e, positions, seeds, state_scale)
        s = self.unroll(s, e, positions, cache, num_steps, on_recurrence)
        logits = self.decode(s, positions, cache, logits_to_keep=logits_to_keep)
        if past_key_values is not None:
            past_key_values.settle(num_steps)
            past_key_values.columns += width

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=config.padded_vocab_size, **kwargs)
        output = RavenOutput(
            loss=loss, logits=logits, past_key_values=past_key_values, latents=self.transformer.ln_f(s)
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()


__all__ = ["RavenConfig", "RavenForCausalLM", "RavenModel", "RavenOutput", "RavenPreTrainedModel"]

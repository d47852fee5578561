"""HRM-Text: the verbs of transformers' own class, on its own modules.

Two stacks of layers, L and H, with a state each. One recurrence is one H cycle: `L_cycles` passes of L, then one of H.
"""

from contextlib import nullcontext

import torch

from ...cache import Placement, Slots
from ...compat import HrmTextAttention
from ..adapter import RecurrentDepthAdapter
from ..attention import project, rotary_attention
from ..attention_choice import ChosenAttention
from ..causal_lm import columns_to_keep
from ..loading import CheckedLoading
from ..rotary import rotate_halves
from ..rotary_positions import RotaryPositions
from .configuration_hrm_text import HrmTextConfig, take_config


class PlacedAttention(HrmTextAttention):
    """transformers' own attention, which attends through a placement where there is one.

    Without one, as in a call of the model's modules by themselves, it is transformers' own.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args,
        cycle_offset: int = 0,
        at: Placement | None = None,
        slot: int | torch.Tensor | Slots = 0,
        **kwargs,
    ):
        if at is None:
            return super().forward(hidden_states, *args, cycle_offset=cycle_offset, **kwargs)
        x = hidden_states
        qk, value, heads = project(x, self.q_proj, self.k_proj, self.v_proj, self.head_dim)
        y = rotary_attention(qk, value, heads, rotate_halves, at, self.layer_idx + cycle_offset, slot)
        return self.o_proj(torch.sigmoid(self.gate_proj(x)) * y.type_as(x)), None


class HrmTextAdapter(CheckedLoading, ChosenAttention, RotaryPositions, RecurrentDepthAdapter):
    """The verbs of transformers' `HrmTextForCausalLM`.

    A position's state is both of the model's, [batch, width, 2 x hidden_size]: that of H, which the head reads, then
    that of L. Only their start sees the token, so diffusion forcing is not defined. Every pass of a cycle has keys and
    values of its own, so a cache has `(L_cycles + 1) x num_layers_per_stack` layers, in which `kv_sharing="none"`
    keeps an entry for each cycle and `"last"` one.
    """

    has_injected_embedding = False
    starts_from_noise = False
    has_readable_shallow_states = False
    compiles_core = True

    @property
    def has_bidirectional_prompt(self) -> bool:
        return self.config.prefix_lm

    @property
    def layers(self) -> tuple[int, int, int]:
        return 0, (self.config.L_cycles + 1) * self.config.num_layers_per_stack, 0

    def __init__(self, config):
        take_config(config)
        super().__init__(config)
        self.finish_adapting()

    @classmethod
    def take_config(cls, model) -> None:
        take_config(model.config)

    def finish_adapting(self) -> None:
        self.take_frequencies(self.config)
        for module in self.modules():
            if type(module) is HrmTextAttention:
                module.__class__ = PlacedAttention

    # --- the verbs ---

    def embed(self, input_ids, at, inputs_embeds=None):
        tokens = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        return tokens * self.model.embedding_scale

    def initialize_state(self, e, positions, seeds, scale=1.0):
        """H's state is the embedding, L's a stored one; there is no noise to seed or scale."""
        return torch.cat((e, self.model.z_L_init.to(e).expand_as(e)), dim=-1)

    def recur(self, s, e, at, depth):
        self.rotate(at)
        high, low = s.chunk(2, dim=-1)
        slot, count = at.slot(depth), self.config.L_cycles
        for cycle in range(count):
            # Where transformers' own forward() lets no gradients flow, none do here.
            with nullcontext() if cycle >= count - self._cycles_with_gradients(depth) else torch.no_grad():
                low = self._run(self.model.L_module, low.to(high.device) + high, cycle, at, slot)
        low = low.to(high.device)
        high = self._run(self.model.H_module, high + low, count, at, slot)
        return torch.cat((high, low.to(high.device)), dim=-1)

    def decode(self, s, at, readout=0, logits_to_keep=0):
        return self.lm_head(self.latents(s)[:, columns_to_keep(logits_to_keep)])

    # --- what goes with them ---

    def latents(self, s):
        """H's states."""
        return s.chunk(2, dim=-1)[0]

    def read(self, s, at, logits_to_keep, keeps_hidden):
        return self.decode(s, at, logits_to_keep=logits_to_keep), (self.latents(s),) if keeps_hidden else ()

    def _run(self, stack, x: torch.Tensor, number: int, at: Placement, slot) -> torch.Tensor:
        """A pass of a stack, the cycle's pass `number`."""
        return stack(x, cycle_offset=number * self.config.num_layers_per_stack, at=at, slot=slot)

    def _cycles_with_gradients(self, depth: int) -> int:
        """How many of the last passes of L carry gradients in this recurrence."""
        padded = self.model.L_bp_cycles_padded
        return padded[depth] if depth < len(padded) else 1


__all__ = ["HrmTextAdapter", "HrmTextConfig"]

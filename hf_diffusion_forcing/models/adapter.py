"""An adapter for looped models of other classes."""

from typing import ClassVar

from transformers import GenerationMixin

from ..cache import RecurrentDepthCache
from .causal_lm import RecurrentDepthForCausalLM


class RecurrentDepthAdapter(RecurrentDepthForCausalLM):
    """Gives the verbs to a looped model whose class does not know this package.

    A subclass implements `embed`, `initialize_state`, `recur` and `decode` (see `RecurrentDepthInterface`); `self` is
    the model, so its modules are attributes. Attention must use `at.attend(layer, query, key, value, slot)`, with
    layers counted over prelude, core and coda; `slot` is `at.slot(depth)` in the core, `readout` in the coda and 0 in
    the prelude. It is torch's own kernel, whatever the config's `attn_implementation`, which is the model's own.

    Attributes:
        layers: attention layers of prelude, core and coda.
        mean_recurrence: recurrences when `num_steps` is not given.
    """

    layers: ClassVar[tuple[int, int, int]]
    mean_recurrence: ClassVar[int]

    # transformers' own, not the model's: the inputs are for this package's forward(), and a class written for another
    # version of transformers uses another name for the cache.
    prepare_inputs_for_generation = GenerationMixin.prepare_inputs_for_generation

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        return RecurrentDepthCache(*self.layers, num_steps, kv_sharing, capacity)

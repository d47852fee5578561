"""The verbs of a looped model of another class."""

from typing import ClassVar

from transformers import GenerationMixin

from ..cache import RecurrentDepthCache
from .causal_lm import RecurrentDepthForCausalLM


class RecurrentDepthAdapter(RecurrentDepthForCausalLM):
    """The verbs of a looped model whose class knows nothing of this package.

    A subclass implements `embed`, `initialize_state`, `recur` and `decode` (see `RecurrentDepthInterface`); `self` is
    the model, so its modules are at hand. Attention goes through `at.attend(layer, query, key, value, slot)`, with
    layers counted over prelude, core and coda, and `slot` from `at.slot(depth)` in the core, `readout` in the coda, 0
    in the prelude.

    Attributes:
        layers: attention layers of prelude, core and coda.
        mean_recurrence: recurrences when `num_steps` is not given.
    """

    layers: ClassVar[tuple[int, int, int]]
    mean_recurrence: ClassVar[int]

    # transformers' own, whatever the model's class has: what it prepares goes to the forward() of this package, and a
    # class written for another version of transformers calls the cache by another name.
    prepare_inputs_for_generation = GenerationMixin.prepare_inputs_for_generation

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        return RecurrentDepthCache(*self.layers, num_steps, kv_sharing, capacity)

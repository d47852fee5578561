"""An adapter for looped models of other classes."""

from typing import ClassVar

from transformers import GenerationMixin, PreTrainedModel

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

    compiles_core = False
    """True in an adapter whose `recur` torch.compile compiles as one graph: then `compile=True` is possible."""

    layers: ClassVar[tuple[int, int, int]]
    mean_recurrence: ClassVar[int]

    # transformers' own, not the model's: the inputs are for this package's forward(), and a class written for another
    # version of transformers uses another name for the cache.
    prepare_inputs_for_generation = GenerationMixin.prepare_inputs_for_generation

    @classmethod
    def take_config(cls, model: PreTrainedModel) -> None:
        """Teach a model's config what the samplers and `forward()` ask of it, where it does not say so itself.

        Called before the model's class changes.

        Raises:
            ValueError: a config that does not fit; then nothing has changed.
        """
        config = model.config
        if getattr(config, "max_position_embeddings", None) is None:
            raise ValueError(
                f"{type(config).__name__} has no max_position_embeddings: set it to the longest sequence the model "
                "reads."
            )
        facts = {
            "mean_recurrence": cls.mean_recurrence,
            "mean_backprop_depth": cls.mean_recurrence,
            "padded_vocab_size": model.get_input_embeddings().num_embeddings,
            "training_depth": None,
            "state_seed": None,
            "use_cache": True,
        }
        for name, value in facts.items():
            if getattr(config, name, None) is None:
                setattr(config, name, value)

    def finish_adapting(self) -> None:
        """A hook for what else the model needs, called when its class has changed."""

    def new_cache(self, num_steps, kv_sharing="last", capacity=0):
        return RecurrentDepthCache(*self.layers, num_steps, kv_sharing, capacity)

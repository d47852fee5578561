"""Recurrent depth for a model of another class, already in memory."""

from typing import ClassVar

from transformers import GenerationMixin, PreTrainedModel

from ..cache import RecurrentDepthCache
from ..generation.mixin import RecurrentDepthGenerationMixin
from .causal_lm import RecurrentDepthForCausalLM
from .interface import RecurrentDepthInterface


class RecurrentDepthAdapter(RecurrentDepthForCausalLM):
    """The verbs of a looped model whose class knows nothing of this package.

    A subclass implements `embed`, `initialize_state`, `recur` and `decode` (see `RecurrentDepthInterface`); `self` is
    the model, so its modules are at hand. Attention goes through `cache.attend(layer, query, key, value, slot)`, with
    layers counted over prelude, core and coda, and `slot` from `cache.slot(depth)` in the core, `readout` in the
    coda, 0 in the prelude.

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


def enable_recurrent_depth(
    model: PreTrainedModel, adapter: type[RecurrentDepthAdapter] | None = None
) -> PreTrainedModel:
    """Give a model in memory this package's `generate()` and `forward()`.

    Weights and modules stay as they are; the model's class becomes a subclass of its own that also is an `adapter`, and
    its config learns what the samplers ask of it (`mean_recurrence`, `mean_backprop_depth`, `padded_vocab_size`,
    `use_cache`), where it does not say so itself. Saving writes the model as before; after loading call this again.

    Args:
        model: a looped language model; one of this package's classes is returned as it is.
        adapter: the verbs of another class.

    Returns:
        The model itself.

    Raises:
        TypeError: not a `PreTrainedModel`, or `adapter` is no such class or lacks a verb (names it).
        ValueError: no adapter for a class that is not this package's, or a config without `max_position_embeddings`.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model is a {type(model).__name__}; enable_recurrent_depth() needs a PreTrainedModel.")
    if adapter is None:
        if isinstance(model, RecurrentDepthInterface):
            return model
        raise ValueError(
            f"adapter=None: {type(model).__name__} is no model of this package. Pass a RecurrentDepthAdapter that says "
            "how it embeds, recurs and decodes."
        )
    if not (isinstance(adapter, type) and issubclass(adapter, RecurrentDepthAdapter)):
        raise TypeError(
            f"adapter={adapter!r} must be a subclass of RecurrentDepthAdapter (the class, not an instance)."
        )
    missing = sorted(adapter.__abstractmethods__)
    missing += [name for name in ("layers", "mean_recurrence") if not hasattr(adapter, name)]
    if missing:
        raise TypeError(f"adapter={adapter.__name__} lacks {', '.join(missing)}.")
    config = model.config
    if getattr(config, "max_position_embeddings", None) is None:
        raise ValueError(
            f"{type(config).__name__} has no max_position_embeddings: set it to the longest sequence the model reads."
        )
    facts = {
        "mean_recurrence": adapter.mean_recurrence,
        "mean_backprop_depth": adapter.mean_recurrence,
        "padded_vocab_size": model.get_input_embeddings().num_embeddings,
        "use_cache": True,
    }
    for name, value in facts.items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    own = type(model)
    # The same name: it is written into config.json, from which the plain class must load.
    model.__class__ = type(own.__name__, (adapter, own, RecurrentDepthGenerationMixin), {"__module__": own.__module__})
    if getattr(model, "generation_config", None) is None:
        model.generation_config = model.own_generation_config()
    return model

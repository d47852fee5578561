"""Compose `generate()` onto models: onto the families, for the Auto classes, and onto a model already in memory."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from .generation.mixin import RecurrentDepthGenerationMixin
from .models import (
    NanbeigeConfig,
    NanbeigeForSequenceClassification,
    NanbeigeForTokenClassification,
    NanbeigeLanguageModel,
    NanbeigeModel,
    OuroConfig,
    OuroForSequenceClassification,
    OuroForTokenClassification,
    OuroLanguageModel,
    OuroModel,
    RavenConfig,
    RavenForSequenceClassification,
    RavenForTokenClassification,
    RavenLanguageModel,
    RavenModel,
    RecurrentDepthAdapter,
)
from .settings.generation_config import RecurrentDepthGenerationConfig


class RavenForCausalLM(RecurrentDepthGenerationMixin, RavenLanguageModel):
    """A language model of Huginn's format, of any layout, that decodes by any of this package's samplers."""


class OuroForCausalLM(RecurrentDepthGenerationMixin, OuroLanguageModel):
    """An Ouro language model that decodes by this package's samplers.

    There is no prelude and no coda: e is the token embedding, the state starts from it, and every recurrence ends with
    the norm that the head reads. Diffusion forcing is not defined, since nothing but the start sees a changed draft.
    The loss is that of the last recurrence. In training with the config's `exit_entropy_weight` it is the expected loss
    over the exits, which trains the exit gate too; otherwise the gate is frozen.
    """


class NanbeigeForCausalLM(RecurrentDepthGenerationMixin, NanbeigeLanguageModel):
    """A Nanbeige language model that decodes by this package's samplers.

    There is no prelude: e is the token embedding, and the state starts from it. The head reads the normed state, so the
    state can be read out after every loop. Diffusion forcing is not defined, since nothing but the start sees a changed
    draft. The loss is that of the last loop.
    """


FAMILIES = (
    (RavenConfig, RavenModel, RavenForCausalLM, RavenForSequenceClassification, RavenForTokenClassification),
    (OuroConfig, OuroModel, OuroForCausalLM, OuroForSequenceClassification, OuroForTokenClassification),
    (
        NanbeigeConfig,
        NanbeigeModel,
        NanbeigeForCausalLM,
        NanbeigeForSequenceClassification,
        NanbeigeForTokenClassification,
    ),
)
"""Of each family its config, and its model without a head and with each, in the order of `AUTO_CLASSES`."""

AUTO_CLASSES = (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

for _config, *_models in FAMILIES:
    AutoConfig.register(_config.model_type, _config)
    for _auto, _model in zip(AUTO_CLASSES, _models, strict=True):
        _auto.register(_config, _model)


def enable_recurrent_depth(
    model: PreTrainedModel, adapter: type[RecurrentDepthAdapter] | None = None
) -> PreTrainedModel:
    """Give a model in memory this package's `generate()` and `forward()`.

    Weights and modules stay as they are; the model's class becomes a subclass of its own that also is an `adapter`, and
    its config learns what the samplers and `forward()` ask of it (`mean_recurrence`, `mean_backprop_depth`,
    `padded_vocab_size`, `training_depth`, `state_seed`, `use_cache`), where it does not say so itself. Saving writes
    the model as before; after loading call this again.

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
        if isinstance(model, RecurrentDepthGenerationMixin):
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
        "training_depth": None,
        "state_seed": None,
        "use_cache": True,
    }
    for name, value in facts.items():
        if getattr(config, name, None) is None:
            setattr(config, name, value)
    own = type(model)
    # The same name: it is written into config.json, from which the plain class must load.
    model.__class__ = type(own.__name__, (RecurrentDepthGenerationMixin, adapter, own), {"__module__": own.__module__})
    # The plain one of the model's own class, if it has one.
    model.generation_config = model.generation_config or RecurrentDepthGenerationConfig.from_model_config(config)
    return model

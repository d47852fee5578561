"""Compose `generate()` onto models: onto the families, for the Auto classes, and onto a model already in memory."""

import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from .generation.mixin import RecurrentDepthGenerationMixin
from .models import RecurrentDepthAdapter
from .models.hrm_text import HrmTextAdapter, HrmTextConfig
from .models.huginn_raven import (
    RavenConfig,
    RavenForSequenceClassification,
    RavenForTokenClassification,
    RavenLanguageModel,
    RavenModel,
)
from .models.nanbeige import (
    NanbeigeConfig,
    NanbeigeForSequenceClassification,
    NanbeigeForTokenClassification,
    NanbeigeLanguageModel,
    NanbeigeModel,
)
from .models.ouro import (
    OuroConfig,
    OuroForSequenceClassification,
    OuroForTokenClassification,
    OuroLanguageModel,
    OuroModel,
)
from .models.parcae import (
    ParcaeConfig,
    ParcaeForSequenceClassification,
    ParcaeForTokenClassification,
    ParcaeLanguageModel,
    ParcaeModel,
)
from .serving.mixin import ContinuousGenerationMixin
from .settings.generation_config import RecurrentDepthGenerationConfig


class RavenForCausalLM(ContinuousGenerationMixin, RavenLanguageModel):
    """A language model of Huginn's format, of any layout, that decodes by any of this package's samplers."""


class OuroForCausalLM(ContinuousGenerationMixin, OuroLanguageModel):
    """An Ouro language model that decodes by this package's samplers.

    There is no prelude and no coda: e is the token embedding, the state starts from it, and every recurrence ends with
    the norm that the head reads. Diffusion forcing is not defined, since nothing but the start sees a changed draft.
    The loss is that of the last recurrence. In training with the config's `exit_entropy_weight` it is the expected loss
    over the exits, which trains the exit gate too; otherwise the gate is frozen.
    """


class HrmTextForCausalLM(ContinuousGenerationMixin, HrmTextAdapter, transformers.HrmTextForCausalLM):
    """transformers' HRM-Text with this package's samplers: its modules, weights and files are transformers' own.

    One recurrence is one H cycle. A prompt is read in both directions where `token_type_ids` is 1.
    """


class NanbeigeForCausalLM(ContinuousGenerationMixin, NanbeigeLanguageModel):
    """A Nanbeige language model that decodes by this package's samplers.

    There is no prelude: e is the token embedding, and the state starts from it. The head reads the normed state, so the
    state can be read out after every loop. Diffusion forcing is not defined, since nothing but the start sees a changed
    draft. The loss is that of the last loop.
    """


class ParcaeForCausalLM(ContinuousGenerationMixin, ParcaeLanguageModel):
    """A Parcae language model that decodes by any of this package's samplers.

    A token reaches the state twice at every recurrence: by the injected embedding e, and by the value embeddings of the
    core's attention. The latter are always those of the current draft; momentum mixes old embeddings into e alone.
    """


CLASSES = (
    (RavenConfig, RavenModel, RavenForCausalLM, RavenForSequenceClassification, RavenForTokenClassification),
    (OuroConfig, OuroModel, OuroForCausalLM, OuroForSequenceClassification, OuroForTokenClassification),
    (
        NanbeigeConfig,
        NanbeigeModel,
        NanbeigeForCausalLM,
        NanbeigeForSequenceClassification,
        NanbeigeForTokenClassification,
    ),
    (ParcaeConfig, ParcaeModel, ParcaeForCausalLM, ParcaeForSequenceClassification, ParcaeForTokenClassification),
)
"""Of each of `families.FAMILIES` its classes: the config, and the model without a head and with each, in the order of
`AUTO_CLASSES`."""

AUTO_CLASSES = (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

for _config, *_models in CLASSES:
    AutoConfig.register(_config.model_type, _config)
    for _auto, _model in zip(AUTO_CLASSES, _models, strict=True):
        _auto.register(_config, _model)

# transformers knows this family too. Its base model stays transformers' own.
AutoConfig.register(HrmTextConfig.model_type, HrmTextConfig, exist_ok=True)
for _config in (HrmTextConfig, transformers.HrmTextConfig):
    AutoModelForCausalLM.register(_config, HrmTextForCausalLM, exist_ok=True)

ADAPTED: dict[type[PreTrainedModel], type[RecurrentDepthAdapter]] = {
    transformers.HrmTextForCausalLM: HrmTextForCausalLM,
}
"""Classes of transformers, and what `enable_recurrent_depth()` makes of their models without an adapter."""


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
        adapter: the verbs of another class. Models of transformers' `HrmTextForCausalLM` need none.

    Returns:
        The model itself.

    Raises:
        TypeError: not a `PreTrainedModel`, or `adapter` is no such class or lacks a verb (names it).
        ValueError: no adapter for a class that needs one, or a config that does not fit, such as one without
            `max_position_embeddings`. Then nothing has changed.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model is a {type(model).__name__}; enable_recurrent_depth() needs a PreTrainedModel.")
    own, adapted = type(model), None
    if adapter is None:
        if isinstance(model, RecurrentDepthGenerationMixin):
            return model
        adapter = adapted = ADAPTED.get(own)
    else:
        check_adapter(adapter)
    if adapter is None:
        raise ValueError(
            f"adapter=None: {own.__name__} is no model of this package. Pass a RecurrentDepthAdapter that says "
            "how it embeds, recurs and decodes."
        )
    adapter.take_config(model)
    # The same name: it is written into config.json, from which the plain class must load.
    model.__class__ = adapted or type(
        own.__name__, (ContinuousGenerationMixin, adapter, own), {"__module__": own.__module__}
    )
    model.finish_adapting()
    # The plain one of the model's own class, if it has one.
    model.generation_config = model.generation_config or RecurrentDepthGenerationConfig.from_model_config(model.config)
    return model


def check_adapter(adapter: type[RecurrentDepthAdapter]) -> None:
    """TypeError unless it is a subclass of `RecurrentDepthAdapter` with all verbs."""
    if not (isinstance(adapter, type) and issubclass(adapter, RecurrentDepthAdapter)):
        raise TypeError(
            f"adapter={adapter!r} must be a subclass of RecurrentDepthAdapter (the class, not an instance)."
        )
    missing = sorted(adapter.__abstractmethods__)
    missing += [name for name in ("layers", "mean_recurrence") if not hasattr(adapter, name)]
    if missing:
        raise TypeError(f"adapter={adapter.__name__} lacks {', '.join(missing)}.")

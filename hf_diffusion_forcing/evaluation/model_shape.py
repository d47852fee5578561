"""What the passes of a model read and compute, counted from its config alone."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..generation.mixin import RecurrentDepthGenerationMixin

VERBS = ("embed", "recur", "decode")
"""The passes of a model: its prelude, one recurrence of its core, and its coda with the head."""


@dataclass
class VerbShape:
    """One pass.

    Attributes:
        weights: numbers in its linear layers; a layer that runs twice counts twice.
        weight_bytes: the same in bytes.
        layers: attention layers that run.
    """

    weights: int = 0
    weight_bytes: int = 0
    layers: int = 0


@dataclass
class ModelShape:
    """The sizes that decide what decoding costs.

    Norms, biases and rows of the token embedding are left out: they are less than a thousandth of the linear layers.

    Attributes:
        name: of the model.
        parameters: numbers in all of its weights.
        num_steps: recurrences a token.
        has_injected_embedding: whether diffusion forcing is defined.
        verbs: a `VerbShape` for each of `VERBS`.
        entry: numbers in the keys and values of one position in one layer.
        queries: numbers in the queries of one position in one layer.
        channels: numbers in the output of a layer for one position.
    """

    name: str
    parameters: int
    num_steps: int
    has_injected_embedding: bool
    verbs: dict[str, VerbShape] = field(default_factory=lambda: {verb: VerbShape() for verb in VERBS})
    entry: int = 0
    queries: int = 0
    channels: int = 0

    @classmethod
    def of_config(cls, config: PreTrainedConfig, name: str = "") -> ModelShape:
        """Count a model by its config. No weights are made.

        Raises:
            ValueError: the config is not that of a recurrent-depth language model.
        """
        if getattr(config, "layout", "") is None:
            config = deepcopy(config)
            config.layout = "llama"  # its tensors would tell it from "olmo", which has the same linear layers
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        if not isinstance(model, RecurrentDepthGenerationMixin):
            raise ValueError(f"{name or 'This'} is a {config.model_type} model: pass a recurrent-depth model.")
        model.tie_weights()
        return cls.of_model(model, name)

    @classmethod
    @torch.no_grad()
    def of_model(cls, model, name: str = "") -> ModelShape:
        """Count a model by running each verb once on one position.

        Args:
            model: a recurrent-depth model on any device, the meta device included.
        """
        config = model.config
        shape = cls(name, model.num_parameters(), config.mean_recurrence, model.has_injected_embedding)
        verb = "embed"

        def count(module: torch.nn.Linear, *_) -> None:
            shape.verbs[verb].weights += module.weight.numel()
            shape.verbs[verb].weight_bytes += module.weight.numel() * module.weight.element_size()

        cache = model.new_cache(1)
        attend = cache.attend

        def count_attention(layer, query, key, value, *rest):
            shape.verbs[verb].layers += 1
            shape.entry, shape.queries = key.numel() + value.numel(), query.numel()
            return attend(layer, query, key, value, *rest)

        linears = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
        hooks = [module.register_forward_hook(count) for module in linears]
        cache.attend = count_attention
        try:
            ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
            at = cache.place(ids, start=0)
            e = model.embed(ids, at)
            state = model.initialize_state(e, ids, ids[:, 0])
            verb = "recur"
            state = model.recur(state, e, at, 0)
            verb = "decode"
            model.decode(state, at)
        finally:
            for hook in hooks:
                hook.remove()
        shape.channels = e.shape[-1]
        return shape

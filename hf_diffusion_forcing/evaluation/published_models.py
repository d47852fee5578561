"""Shapes of published looped models, by name, for those who do not have the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..settings.validation import nearest

LLAMA_70B = {
    "n_embd": 8192,
    "n_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
}
"""The sizes of Llama 3 70B (arXiv 2407.21783), which has 80 layers."""

MODELS: dict[str, dict[str, Any]] = {
    "huginn-0125": {
        "model_type": "huginn_raven",
        "n_embd": 5280,
        "n_heads": 55,
        "intermediate_size": 17920,
        "vocab_size": 65536,
        "n_layers_in_prelude": 2,
        "n_layers_in_recurrent_block": 4,
        "n_layers_in_coda": 2,
        "mean_recurrence": 32,
    },
    "recurrent-llama-3.2": {
        "model_type": "huginn_raven",
        "layout": "llama",
        "qk_bias": False,
        "tie_embeddings": False,
        "n_embd": 2048,
        "n_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "n_layers_in_prelude": 4,
        "n_layers_in_recurrent_block": 6,
        "n_layers_in_coda": 4,
        "mean_recurrence": 16,
    },
    "ouro-1.4b": {
        "model_type": "ouro",
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "total_ut_steps": 4,
    },
    "ouro-2.6b": {
        "model_type": "ouro",
        "vocab_size": 49152,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "total_ut_steps": 4,
    },
    "nanbeige4.2-3b": {
        "model_type": "nanbeige",
        "vocab_size": 166144,
        "hidden_size": 3072,
        "intermediate_size": 10752,
        "num_hidden_layers": 22,
        "num_attention_heads": 48,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_loops": 2,
    },
    "parcae-1.3b": {
        "model_type": "parcae",
        "n_embd": 1536,
        "intermediate_size": 6144,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32768,
        "n_layers_in_prelude": 8,
        "n_layers_in_recurrent_block": 8,
        "n_layers_in_coda": 8,
        "mean_recurrence": 8,
    },
    "looped-70b": {
        "model_type": "huginn_raven",
        "layout": "llama",
        "qk_bias": False,
        "tie_embeddings": False,
        **LLAMA_70B,
        "n_layers_in_prelude": 20,
        "n_layers_in_recurrent_block": 40,
        "n_layers_in_coda": 20,
        "mean_recurrence": 8,
    },
}
"""What decides a model's size, from its published config.json. "looped-70b" is hypothetical: the layers of a 70B Llama
in Huginn's proportions of prelude, core and coda, with 8 recurrences."""


def config_of(model: str) -> PreTrainedConfig:
    """The config of a model.

    Args:
        model: a name of `MODELS`, a checkpoint folder, or a Hub id (owner/name).

    Raises:
        ValueError: the name is unknown, or the config is damaged.
        OSError: the Hub id is unknown or cannot be reached.
    """
    if model in MODELS:
        return AutoConfig.for_model(**MODELS[model])
    if "/" not in model and not Path(model).is_dir():
        raise ValueError(f"model={model!r} is neither a folder nor a built-in name{nearest(model, [*MODELS])}.")
    return AutoConfig.from_pretrained(model)

"""Undocumented parts of transformers and torch under names of our own. `names.py` says why each is needed.

Where a part is gone, reading it is an error: nothing here has a default that would hide a rename.
"""

import os
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from transformers import GenerationConfig, PrefixConstrainedLogitsProcessor, PreTrainedConfig, initialization
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.modeling_layers import (
    GenericForSequenceClassification,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.hrm_text.modeling_hrm_text import HrmTextAttention
from transformers.utils import cached_file

__all__ = [
    "ROPE_INIT_FUNCTIONS",
    "GenericForSequenceClassification",
    "GenericForTokenClassification",
    "GradientCheckpointingLayer",
    "HrmTextAttention",
    "WeightRenaming",
    "attn_implementation",
    "find_file",
    "half_weight_linear",
    "has_forward_hooks",
    "has_hooks_of_its_own",
    "initialization",
    "is_from_model_config",
    "mask_length",
    "pack_half_weight",
    "pack_weight",
    "packed_linear",
    "pad_token_id",
    "prefix_constraint",
    "register_checkpoint_conversion_mapping",
    "times_written",
    "with_own_code",
]


def attn_implementation(config: PreTrainedConfig) -> str | None:
    """The `attn_implementation` a model was made with, or that was set since."""
    return config._attn_implementation


def is_from_model_config(config: GenerationConfig) -> bool:
    """Whether transformers made this generation config from a model's config."""
    return bool(config._from_model_config)


def mask_length(config: GenerationConfig) -> int:
    """Columns of the attention mask that `generate()` was called with, though it hands none on."""
    return config._mask_length


def pad_token_id(config: GenerationConfig) -> int | None:
    """The pad token that `generate()` has decided on."""
    pad = config._pad_token_tensor
    return None if pad is None else int(pad)


def prefix_constraint(processor: PrefixConstrainedLogitsProcessor) -> tuple[Callable, int]:
    """The user's `prefix_allowed_tokens_fn`, and how many rows continue the same prompt."""
    return processor._prefix_allowed_tokens_fn, processor._num_beams


def has_hooks_of_its_own(module: torch.nn.Module) -> bool:
    """Whether a module itself has a forward hook or a forward pre-hook."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_forward_hooks(model: torch.nn.Module) -> bool:
    """Whether a module inside a model has a forward hook or a forward pre-hook; the model's own do not count."""
    return any(has_hooks_of_its_own(module) for module in model.modules() if module is not model)


def find_file(path: str | os.PathLike, name: str, **where: Any) -> str | None:
    """transformers' `cached_file`, which returns None where there is no such file.

    Args:
        path: folder or Hub id.
        where: `revision`, `cache_dir` and the like.
    """
    return cached_file(
        path,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **where,
    )


def has_matrix_instructions(dtype: torch.dtype) -> bool:
    """Whether oneDNN has fast matrix products of this dtype for this processor, and packs weights of it."""
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32


def pack_weight(weight: torch.Tensor, positions: int) -> torch.Tensor:
    """A copy of a linear weight in oneDNN's blocked layout for calls of so many positions."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, positions)


def packed_linear(x: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
    """`F.linear` without bias, by a weight of `pack_weight`."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def pack_half_weight(weight: torch.Tensor) -> Any:
    """A copy of a float32 linear weight, rounded to float16, in FBGEMM's layout."""
    return torch.ops.quantized.linear_prepack_fp16(weight, None)


def half_weight_linear(x: torch.Tensor, packed: Any) -> torch.Tensor:
    """`F.linear` without bias, of float32 inputs by a weight of `pack_half_weight`; sums and outputs are float32."""
    return torch.ops.quantized.linear_dynamic_fp16(x, packed)


def with_own_code(function: Callable) -> Callable:
    """A copy of a function without closure or defaults, with a code object of its own: torch.compile counts and limits
    compilations by that."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)


def times_written(tensor: torch.Tensor) -> int:
    """How often a tensor has been written to."""
    return tensor._version

"""`attn_implementation`: which kernel computes a model's attention."""

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig

from ..cache.attention import attention, eager_attention
from ..compat import attn_implementation

KERNELS: dict[str | None, Callable[..., torch.Tensor]] = {None: attention, "sdpa": attention, "eager": eager_attention}


def attention_kernel(config: PreTrainedConfig) -> Callable[..., torch.Tensor]:
    """The kernel of a config's `attn_implementation`; ValueError if there is none."""
    name = attn_implementation(config)
    check_implementation(name)
    return KERNELS[name]


def check_implementation(name: str | None) -> None:
    """ValueError for an `attn_implementation` other than "sdpa", "eager" and None, which is "sdpa"."""
    if name not in KERNELS:
        raise ValueError(
            # It begins as transformers' own error does.
            f'Specified `attn_implementation="{name}"` is not supported by recurrent-depth models, whose caches hold '
            "several entries per position: use 'sdpa' (the default), or 'eager' for output_attentions=True."
        )


def check_attentions(config: PreTrainedConfig) -> None:
    """ValueError unless the config's attention computes the probabilities that `output_attentions` returns."""
    if attn_implementation(config) != "eager":
        raise ValueError(
            f"output_attentions=True needs attn_implementation='eager', but it is {attn_implementation(config)!r}: "
            "load the model with attn_implementation='eager', or call model.set_attn_implementation('eager')."
        )


class ChosenAttention:
    """Refuses unsupported values of `attn_implementation`, when a model is made and when it is set.

    transformers would accept every kernel of its own, or warn and change nothing. Put it before `PreTrainedModel` in
    the bases.
    """

    def _check_and_adjust_attn_implementation(self, name, *args, **kwargs):
        check_implementation(name)
        return super()._check_and_adjust_attn_implementation(name, *args, **kwargs)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """transformers looks for its own attention functions in the source, which these models do not use."""
        return True

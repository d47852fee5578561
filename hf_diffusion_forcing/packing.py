"""Linear weights in the layout a processor's matrix units read fastest."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .compat import (
    half_weight_linear,
    has_matrix_instructions,
    pack_half_weight,
    pack_weight,
    packed_linear,
    times_written,
)

FBGEMM = ("fbgemm", "x86")
"""The settings of `torch.backends.quantized.engine` with which torch packs by FBGEMM."""


def packable_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes this processor has packed kernels for: float32, and bfloat16 where it has instructions for it."""
    return (torch.float32, torch.bfloat16) if has_matrix_instructions(torch.bfloat16) else (torch.float32,)


class PackedLinear(nn.Linear):
    """A bias-free `nn.Linear` with a second copy of its weight, in a blocked layout of oneDNN or FBGEMM.

    Decoding multiplies few positions by large weights: with plain rows every call reorders them again, which costs
    about as much as reading them does. The plain weight stays for saving, and is used where gradients are wanted
    and where the input is of another dtype or device.
    """

    packed: Any
    """The copy: a tensor in oneDNN's layout, or FBGEMM's object; None where the plain weight is used."""
    packed_dtype: torch.dtype
    multiply: Callable[[torch.Tensor, Any], torch.Tensor]
    """Takes an input and the copy."""
    packed_from: tuple[int, int] | None
    """Where the plain weight stood and how often it had been written to."""

    def __getstate__(self):
        """A copy or a pickle has the plain weight alone: torch cannot copy the other layouts."""
        return self.__dict__ | {"packed": None, "packed_from": None}

    def _apply(self, *args, **kwargs):
        """torch's own step of `to()`: what was packed is of another dtype or device then."""
        self.packed = self.packed_from = None
        return super()._apply(*args, **kwargs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = (
            x.dtype != self.weight.dtype
            or x.device.type != "cpu"
            or (self.weight.data_ptr(), times_written(self.weight)) != self.packed_from
            or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            or torch.is_autocast_enabled("cpu")
        )
        if plain:
            return F.linear(x, self.weight)
        return self.multiply(x, self.packed)


def packed_dtypes(model: nn.Module) -> list[str]:
    """The dtypes of a model's packed copies, such as ["torch.float16"]; empty if none of its layers is packed."""
    layers = [module for module in model.modules() if isinstance(module, PackedLinear)]
    return sorted({str(layer.packed_dtype) for layer in layers if layer.packed is not None})


def pack_linear_weights(model: nn.Module, positions: int = 8, dtype: torch.dtype | None = None) -> nn.Module:
    """Give every bias-free linear layer of a model on the CPU a packed copy of its weight, for inference.

    The layers take twice the memory, or 1.5 times with copies in float16. Call it last, after adapters were merged and
    weights moved. A weight that is written to, moved or cast afterwards is used as it is, unpacked, until this is
    called again; only what is written through `weight.data` goes unnoticed (PEFT merges adapters so).
    `unpack_linear_weights` undoes it.

    Args:
        model: in float32, or in bfloat16 where the processor has instructions for it, on the CPU.
        positions: how many positions a call will usually have; oneDNN chooses the layout by it.
        dtype: of the copies. None keeps that of the weights, and the sums up to their order. `torch.float16` rounds the
            copies of float32 weights: half the bytes are read in every pass; inputs, sums and outputs stay float32. A
            layer that falls back to its plain weight, as above, uses the unrounded one.

    Returns:
        The model itself.

    Raises:
        RuntimeError: this torch has no oneDNN, or for float16 no FBGEMM.
        ValueError: no layer of the model can be packed, on this processor or at all, or a weight has no float16 value.
    """
    _check_kernels(dtype)
    # A layer whose `forward` was replaced (accelerate's hooks) would not use the copy.
    linears = [m for m in model.modules() if type(m) in (nn.Linear, PackedLinear) and "forward" not in vars(m)]
    if any(module.weight.is_inference() for module in linears):
        raise ValueError("The weights were made inside torch.inference_mode(): load the model outside of it.")
    dtypes = packable_dtypes() if dtype is None else (torch.float32,)
    fitting = [m for m in linears if m.bias is None and m.weight.device.type == "cpu" and m.weight.dtype in dtypes]
    if not fitting:
        found = sorted({f"{m.weight.dtype} on {m.weight.device.type}" for m in linears})
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"No linear layer to pack: found {', '.join(found) or 'none'}. This processor packs bias-free layers in "
            f"{allowed}{'' if dtype is None else f' to {dtype}'}, on the CPU: "
            f"load the model with dtype={dtypes[-1]} and without device_map."
        )
    if dtype is not None:
        _check_range(model, fitting)
    for module in fitting:
        module.__class__ = PackedLinear
        weight = module.weight.detach()
        with torch.no_grad():
            module.packed = pack_weight(weight, positions) if dtype is None else pack_half_weight(weight)
        module.packed_dtype = weight.dtype if dtype is None else dtype
        module.multiply = packed_linear if dtype is None else half_weight_linear
        module.packed_from = module.weight.data_ptr(), times_written(module.weight)
    return model


def _check_kernels(dtype: torch.dtype | None) -> None:
    """Refuse a dtype of copies that this torch has no kernels for."""
    if dtype not in (None, torch.float16):
        raise ValueError(f"dtype={dtype}: pass torch.float16, or None to keep the dtype of the weights.")
    if dtype is None and not torch.backends.mkldnn.is_available():
        raise RuntimeError("This torch was built without oneDNN (torch.backends.mkldnn), which packs the weights.")
    engine = torch.backends.quantized.engine
    if dtype is not None and engine not in FBGEMM:
        remedy = "set it to 'fbgemm'" if FBGEMM[0] in torch.backends.quantized.supported_engines else "leave dtype out"
        raise RuntimeError(
            f"dtype={dtype}: FBGEMM packs to float16, but torch.backends.quantized.engine is {engine!r}: {remedy}."
        )


def _check_range(model: nn.Module, modules: list[nn.Module]) -> None:
    """Refuse weights that FBGEMM would replace by float16's largest number."""
    limit = torch.finfo(torch.float16).max
    for name, module in model.named_modules():
        if module in modules and not module.weight.detach().abs().amax() <= limit:  # not: NaN compares false
            raise ValueError(
                f"dtype=torch.float16: {name}.weight holds numbers that are not finite in float16 (above {limit:.0f}, "
                "or NaN): leave dtype out."
            )


def unpack_linear_weights(model: nn.Module) -> nn.Module:
    """Drop the copies that `pack_linear_weights` made; returns the model itself."""
    for module in model.modules():
        if type(module) is PackedLinear:
            del module.packed, module.packed_dtype, module.multiply, module.packed_from
            module.__class__ = nn.Linear
    return model

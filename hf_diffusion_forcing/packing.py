"""Linear weights in the layout a processor's matrix units read fastest."""

import torch
import torch.nn.functional as F
from torch import nn

from .compat import has_matrix_instructions, pack_weight, packed_linear, times_written


def packable_dtypes() -> tuple[torch.dtype, ...]:
    """The dtypes this processor has packed kernels for: float32, and bfloat16 where it has instructions for it."""
    return (torch.float32, torch.bfloat16) if has_matrix_instructions(torch.bfloat16) else (torch.float32,)


class PackedLinear(nn.Linear):
    """A bias-free `nn.Linear` with a second copy of its weight, in oneDNN's blocked layout.

    Decoding multiplies few positions by large weights: with plain rows oneDNN reorders them again in every call, which
    costs about as much as reading them does. The plain weight stays for saving, and is used where gradients are wanted
    and where the input is of another dtype or device.
    """

    packed: torch.Tensor | None
    packed_from: tuple[int, int] | None
    """Where the plain weight stood and how often it had been written to."""

    def __getstate__(self):
        """A copy or a pickle has the plain weight alone: torch cannot copy the other layout."""
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
        return packed_linear(x, self.packed)


def pack_linear_weights(model: nn.Module, positions: int = 8) -> nn.Module:
    """Give every bias-free linear layer of a model on the CPU a packed copy of its weight, for inference.

    The layers take twice the memory. Call it last, after adapters were merged and weights moved. A weight that is
    written to, moved or cast afterwards is used as it is, unpacked, until this is called again; only what is written
    through `weight.data` goes unnoticed (PEFT merges adapters so). `unpack_linear_weights` undoes it.

    Args:
        model: in float32, or in bfloat16 where the processor has instructions for it, on the CPU.
        positions: how many positions a call will usually have; oneDNN chooses the layout by it.

    Returns:
        The model itself.

    Raises:
        RuntimeError: this torch has no oneDNN.
        ValueError: no layer of the model can be packed, on this processor or at all.
    """
    if not torch.backends.mkldnn.is_available():
        raise RuntimeError("This torch was built without oneDNN (torch.backends.mkldnn), which packs the weights.")
    # A layer whose `forward` was replaced (accelerate's hooks) would not use the copy.
    linears = [m for m in model.modules() if type(m) in (nn.Linear, PackedLinear) and "forward" not in vars(m)]
    if any(module.weight.is_inference() for module in linears):
        raise ValueError("The weights were made inside torch.inference_mode(): load the model outside of it.")
    dtypes = packable_dtypes()
    fitting = [m for m in linears if m.bias is None and m.weight.device.type == "cpu" and m.weight.dtype in dtypes]
    if not fitting:
        found = sorted({f"{m.weight.dtype} on {m.weight.device.type}" for m in linears})
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(
            f"No linear layer to pack: found {', '.join(found) or 'none'}. This processor packs bias-free layers in "
            f"{allowed}, on the CPU: load the model with dtype={dtypes[-1]} and without device_map."
        )
    for module in fitting:
        module.__class__ = PackedLinear
        with torch.no_grad():
            module.packed = pack_weight(module.weight.detach(), positions)
        module.packed_from = module.weight.data_ptr(), times_written(module.weight)
    return model


def unpack_linear_weights(model: nn.Module) -> nn.Module:
    """Drop the copies that `pack_linear_weights` made; returns the model itself."""
    for module in model.modules():
        if type(module) is PackedLinear:
            del module.packed, module.packed_from
            module.__class__ = nn.Linear
    return model

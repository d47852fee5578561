"""Counts what would wait for an accelerator (values that Python reads, tensors that Python makes) and kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Tensor = torch.Tensor
READS = {
    *(Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
    *(Tensor.cpu, Tensor.numpy, torch.equal, Tensor.equal, torch.allclose),
}
"""Functions that need a tensor's values in Python."""
MAKES = {torch.tensor, torch.as_tensor, torch.from_numpy}
"""Functions that copy Python's values to the device."""
SIZED_BY_VALUES = ("nonzero", "masked_select", "_unique2", "unique_dim", "_local_scalar_dense")
"""Operators whose result's shape, or whose caller, depends on values."""
NO_WORK = ("_unsafe_view", "empty", "new_empty", "empty_strided")
"""Operators without a kernel, beside views."""
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


@dataclass
class Traffic:
    """Counts of one block of code."""

    reads: int = 0
    makes: int = 0
    kernels: int = 0


class Functions(TorchFunctionMode):
    """Counts calls of `READS` and `MAKES`, which operators do not show on a CPU."""

    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic = traffic

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.traffic.reads += func in READS
        self.traffic.makes += func in MAKES
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Counts operators that wait for values by themselves, as selecting by a mask does, and those with a kernel."""

    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in INDEXED and any(index is not None and index.dtype == torch.bool for index in args[1])
        self.traffic.reads += name in SIZED_BY_VALUES or by_mask
        self.traffic.kernels += not (func.is_view or name in NO_WORK)
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Traffic]:
    """The traffic of the code inside. (`item()` counts twice, as a function and as an operator.)"""
    traffic = Traffic()
    with Functions(traffic), Operators(traffic):
        yield traffic

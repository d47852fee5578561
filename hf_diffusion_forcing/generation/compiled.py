"""Core passes compiled by torch; on CUDA devices also captured as graphs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..cache.static import SlotEntries, StaticPlaces
from ..compat import has_forward_hooks, with_own_code
from ..models.interface import RecurrentDepthInterface
from ..packing import PackedLinear

BACKEND = "inductor"
"""The backend of torch.compile."""


def core_pass(
    model: RecurrentDepthInterface,
    s: torch.Tensor,
    e: torch.Tensor,
    places: StaticPlaces,
    keys: list[torch.Tensor | None],
    values: list[torch.Tensor | None],
    extent: int,
) -> torch.Tensor:
    """One recurrence of a pass in a static shape: the function that is compiled.

    Args:
        s, e: [1, places, channels].
        places: where the pass stands.
        keys, values: see `SlotEntries`.
        extent: keys that attention reads.
    """
    return model.recur(s, e, places.place(SlotEntries(keys, values), extent), 0)


_COMPILED: WeakKeyDictionary[RecurrentDepthInterface, dict[tuple[Any, ...], Callable]] = WeakKeyDictionary()
"""Each model's compiled functions, by shape. They take the model as an argument, so that they do not keep it alive."""


class CorePasses:
    """The core passes of one sampler, by compiled functions that all samplers of the model share.

    On a CUDA device, a pass of some shape at some place of the cache is captured when it first runs in a call, and
    replayed from then on. (After mini-sglang's `GraphRunner`.)

    Args:
        model: implements `RecurrentDepthInterface`.
    """

    def __init__(self, model: RecurrentDepthInterface):
        self.model = model
        self.functions = _COMPILED.setdefault(model, {})
        self.captured: dict[tuple[Any, ...], CapturedPass] = {}

    def run(
        self, s: torch.Tensor, e: torch.Tensor, places: StaticPlaces, entries: SlotEntries, extent: int
    ) -> torch.Tensor:
        """States after the recurrence, [1, places, channels], valid until the next call.

        Args:
            s, e: [1, places, channels]; for passes of one shape always the same tensors.
            places: where the pass stands.
            entries: what it reads and writes.
            extent: keys that attention reads.
        """
        stored = entries.tensors
        key = places.shape.rows, places.shape.cohorts, places.shape.width, extent, stored[0].shape, stored[0].stride()
        if key not in self.functions:
            # torch.compile limits how often one code object is compiled.
            own = with_own_code(core_pass)
            self.functions[key] = torch.compile(own, fullgraph=True, dynamic=False, backend=BACKEND)
        call = partial(self.functions[key], self.model, s, e, places, entries.keys, entries.values, extent)
        if s.device.type != "cuda":
            return call()
        key += tuple(tensor.data_ptr() for tensor in stored)
        if key not in self.captured:
            with torch.cuda.device(s.device):
                self.captured[key] = CapturedPass(call)
        return self.captured[key].replay()


class CapturedPass:
    """A call as a CUDA graph, which reads and writes the same memory whenever it is replayed.

    Args:
        call: changes nothing when it is repeated with the same inputs.
    """

    def __init__(self, call: Callable[[], torch.Tensor]):
        current, other = torch.cuda.current_stream(), torch.cuda.Stream()
        # The first call compiles and loads kernels, which a graph cannot record.
        other.wait_stream(current)
        with torch.cuda.stream(other):
            call()
        current.wait_stream(other)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = call()

    def replay(self) -> torch.Tensor:
        """Run it; returns its output, which the next replay overwrites."""
        self.graph.replay()
        return self.output


def check_compilable(model: RecurrentDepthInterface) -> None:
    """Refuse a model that cannot be compiled.

    Raises:
        ValueError: a part of the model cannot be compiled, or there is no compiler; the message names it.
    """
    reason = _obstacle(model)
    if reason is not None:
        raise ValueError(f"compile=True is not possible {reason}, or leave compile out.")


def _obstacle(model: RecurrentDepthInterface) -> str | None:
    """What keeps a model from being compiled, and what to do about it."""
    parts = [module for module in model.modules() if module is not model]
    if not model.compiles_core:
        name = type(model).__name__
        return f"with {name}: set compiles_core = True in that class if torch.compile compiles its recur() as one graph"
    if any(isinstance(module, PackedLinear) for module in parts):
        return "with packed weights: call unpack_linear_weights(model) first"
    if has_forward_hooks(model):
        return "with forward hooks inside the model: remove them"
    if any("forward" in vars(module) for module in parts):
        return (
            "where the forward() of a module has been replaced, as accelerate does for device_map and offloading: load "
            "the model on one device"
        )
    if model.device.type == "cpu" and BACKEND == "inductor" and sys.platform != "win32":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if shutil.which(compiler) is None:
            return f"on a CPU without a C++ compiler ({compiler} is not found): install one, or set CXX"
    return None

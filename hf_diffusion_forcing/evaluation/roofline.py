"""Models the cost of ticks on machines described by a few numbers: time by width, and bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedConfig

from ..generation.cost_curve import WIDTHS, CostCurve
from .devices import Device
from .model_shape import ModelShape

BYTES, ARITHMETIC, LINKS = "bytes", "arithmetic", "links"
"""What can limit a pass."""

REDUCTIONS = 2
"""All-reduces of a layer under tensor parallelism: after attention and after the MLP (arXiv 1909.08053)."""


@dataclass(frozen=True)
class Work:
    """What a pass asks of all devices together.

    Attributes:
        read: bytes of weights, keys and values.
        operations: additions and multiplications.
        sent: bytes that each device sends to the others.
        reductions: all-reduces.
    """

    read: float
    operations: float
    sent: float = 0.0
    reductions: int = 0

    def seconds(self, device: Device, devices: int = 1) -> dict[str, float]:
        """Seconds by what limits them: reading or arithmetic, whichever takes longer, and then the links."""
        reading = self.read / (devices * device.bandwidth)
        computing = self.operations / (devices * device.arithmetic)
        sending = self.sent / device.link if self.sent else 0.0
        longer = {BYTES: reading, ARITHMETIC: 0.0} if reading >= computing else {BYTES: 0.0, ARITHMETIC: computing}
        return longer | {LINKS: sending}


def pass_work(
    shape: ModelShape,
    verb: str,
    positions: float,
    context: float,
    itemsize: int,
    entries: float = 1.0,
    devices: int = 1,
) -> Work:
    """The work of one pass of a verb over some positions.

    A weight is read once and used in two operations a position. Each layer reads the keys and values of the context,
    and uses each of their numbers in two operations a query.

    Args:
        verb: "embed", "recur" or "decode".
        positions: of the pass.
        context: positions that each of them attends to.
        itemsize: bytes of a number.
        entries: how many entries of each position of the context a layer reads: one if recurrences share keys and
            values, otherwise one for each recurrence at which the wave has a position.
        devices: among which tensor parallelism divides every layer. An all-reduce is a ring's: each device sends
            2 (devices - 1) / devices of the tensor.
    """
    part = shape.verbs[verb]
    reductions = REDUCTIONS * part.layers if devices > 1 else 0
    return Work(
        read=itemsize * (part.weights + part.layers * context * shape.entry * entries),
        operations=positions * (2 * part.weights + 4 * part.layers * context * shape.queries),
        sent=reductions * 2 * (devices - 1) / devices * positions * shape.channels * itemsize,
        reductions=reductions,
    )


def cost_curve_of(shape: ModelShape, device: Device) -> CostCurve:
    """The roofline of a model on a device: the counterpart of the measured `cost_curve`, over positions from 0 on."""

    def seconds(verb: str, width: int) -> float:
        return sum(pass_work(shape, verb, width, width, device.itemsize).seconds(device).values())

    core = tuple(seconds("recur", width) for width in WIDTHS)
    return CostCurve(core, tuple(seconds("embed", width) + seconds("decode", width) for width in WIDTHS))


def roofline(balance: float, core_layers: int, end_layers: int) -> CostCurve:
    """The cost curve of a machine that reads a layer in one time unit and computes `balance` positions in that time."""
    unit = Device("unit", "", bandwidth=1, arithmetic=balance, memory=0, link=None, precision="bfloat16", source="")
    times = [sum(Work(1, width).seconds(unit).values()) for width in WIDTHS]
    return CostCurve(tuple(core_layers * time for time in times), tuple(end_layers * time for time in times))


def bytes_read(
    config: PreTrainedConfig, kv_readers: Callable[[int], tuple[int, int, int]], itemsize: int = 2
) -> Callable[[int, int], float]:
    """The bytes of weights, keys and values that a model's tick reads with batch 1.

    Args:
        config: of the model.
        kv_readers: for a tick of k core passes, how often a prelude, a core and a coda layer reads all keys and values
            of the context.
        itemsize: bytes of a number; those of bfloat16 by default.

    Returns:
        A function from a tick's core passes and the context's length to bytes.
    """
    shape = ModelShape.of_config(config)
    embed, recur, decode = shape.verbs.values()

    def tick(passes: int, context: int) -> float:
        weights = embed.weights + passes * recur.weights + decode.weights
        parts = zip((embed, recur, decode), kv_readers(passes), strict=True)
        return itemsize * (weights + context * shape.entry * sum(part.layers * times for part, times in parts))

    return tick

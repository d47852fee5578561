"""Estimates decoding speed on a device by a roofline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from ..generation.samplers import SAMPLERS as CLASSES
from ..settings.spelling import spelled_sampler
from ..settings.validation import check_integer
from .devices import Device
from .markdown import markdown_table
from .model_shape import VERBS, ModelShape
from .roofline import pass_work
from .wave_statistics import SAMPLERS, WaveStatistics


def three_digits(value: float) -> str:
    """At least three digits, without an exponent unless the value is tiny."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


COLUMNS = {
    "sampler": ("sampler", str),
    "tokens_per_second": ("tokens/s", three_digits),
    "speedup": ("ratio", "{:.2f}x".format),
    "positions": ("width", "{:.1f}".format),
    "ticks_per_token": ("ticks/token", "{:.2f}".format),
    "recurrences_per_token": ("recurrences/token", "{:.1f}".format),
    "bytes_per_tick": ("GB/tick", lambda size: three_digits(size / 1e9)),
    "operations_per_tick": ("GFLOP/tick", lambda count: three_digits(count / 1e9)),
    "reductions_per_tick": ("all-reduces/tick", "{:.0f}".format),
    "limited_by": ("limited by", str),
}
"""Columns of the table: key, heading and format. docs/estimate.md explains them."""


@dataclass(frozen=True)
class Estimate:
    """The result of `estimate`: calculated, not measured.

    Attributes:
        settings: the arguments, as JSON values.
        rows: one for each sampler, with the keys of `COLUMNS`, "seconds_per_tick", and "seconds_by_limit": the parts of
            it that reading, arithmetic and the links take.
        undefined: samplers that the model does not have.
    """

    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    undefined: list[str]

    def cells(self, hidden: Collection[str] = ()) -> tuple[list[str], list[list[str]]]:
        """The table: headings and rows. All-reduces are left out where there are none.

        Args:
            hidden: keys of other columns to leave out.
        """
        hidden = {*hidden, *(["reductions_per_tick"] if self.settings["tensor_parallel"] == 1 else [])}
        chosen = {key: column for key, column in COLUMNS.items() if key not in hidden}
        cells = [[form(row[key]) for key, (_, form) in chosen.items()] for row in self.rows]
        return [heading for heading, _ in chosen.values()], cells

    def sentences(self) -> list[str]:
        """What was calculated, from what, and what it leaves out."""
        model, device = self.settings["model"], self.settings["device"]
        count = self.settings["tensor_parallel"]
        link = f", {device['link'] / 1e9:.4g} GB/s to the others" if count > 1 else ""
        said = [
            f"{model['name']}, {model['parameters'] / 1e9:.3g}B parameters in {device['precision']}, r = "
            f"{model['num_steps']}, {self.settings['context']} positions of context, batch 1, on {count} x "
            f"{device['title']}: {device['bandwidth'] / 1e9:.4g} GB/s, {device['arithmetic'] / 1e12:.4g} TFLOPS{link} "
            f"({device['source']}).",
            f"Wave statistics: {self.settings['statistics']}.",
            "Calculated by a roofline, never run: an upper bound on the speed. It leaves out the start of kernels, the "
            "latency of links, and all work but linear layers and attention.",
        ]
        if self.undefined:
            said.append(f"Not defined for this model: {', '.join(self.undefined)}.")
        return said

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(vars(self))

    def to_markdown(self) -> str:
        """The table, and what was calculated."""
        title = f"# Estimate for {self.settings['model']['name']} on {self.settings['device']['title']}"
        return "\n\n".join([title, *self.sentences(), "\n".join(markdown_table(*self.cells()))])


def estimate(
    shape: ModelShape,
    device: Device,
    waves: dict[str, WaveStatistics],
    statistics: str,
    tensor_parallel: int = 1,
    context: int = 512,
) -> Estimate:
    """Estimate the decoding speed of every sampler at batch 1.

    A pass takes as long as reading its bytes or as its arithmetic, whichever is longer; under tensor parallelism, the
    all-reduces come on top. A tick is the sum of its passes.

    Args:
        shape: of the model.
        device: what it runs on.
        waves: by spelling of the sampler (see `wave_statistics.SAMPLERS`); the first is the base of all ratios.
        statistics: says where `waves` come from.
        tensor_parallel: devices that share every layer.
        context: positions that each position attends to.

    Raises:
        ValueError: the model does not fit into the devices' memory, or they have no link.
    """
    check_integer("tensor_parallel", tensor_parallel, 1)
    check_integer("context", context, 1)
    check_fits(shape, device, tensor_parallel)
    undefined = [
        name
        for name in SAMPLERS
        if CLASSES[spelled_sampler(name)["sampler"]].needs_injected_embedding and not shape.has_injected_embedding
    ]
    rows: list[dict[str, Any]] = []
    for name, wave in waves.items():
        if name not in undefined:
            row = {"sampler": name} | estimate_tick(shape, device, wave, tensor_parallel, context)
            base = rows[0] if rows else row
            rows.append(row | {"speedup": row["tokens_per_second"] / base["tokens_per_second"]})
    model = {key: getattr(shape, key) for key in ("name", "parameters", "num_steps")}
    settings = {
        "model": model,
        "device": asdict(device),
        "statistics": statistics,
        "tensor_parallel": tensor_parallel,
        "context": context,
    }
    return Estimate(settings, rows, undefined)


def check_fits(shape: ModelShape, device: Device, tensor_parallel: int) -> None:
    """Refuse a model that does not fit into the devices' memory, and several devices without a link.

    Raises:
        ValueError: one of these.
    """
    size = shape.parameters * device.itemsize
    if size > tensor_parallel * device.memory:
        raise ValueError(
            f"{shape.name} takes {size / 1e9:.0f} GB in {device.precision}, but {tensor_parallel} x "
            f"{device.name} has {tensor_parallel * device.memory / 1e9:.0f} GB: use more or larger devices."
        )
    if tensor_parallel > 1 and device.link is None:
        raise ValueError(
            f"tensor_parallel={tensor_parallel}: {device.name} has no published link to others of its kind; use 1, or "
            "another device."
        )


def estimate_tick(
    shape: ModelShape, device: Device, wave: WaveStatistics, devices: int = 1, context: int = 512
) -> dict[str, Any]:
    """The mean tick of a sampler: a row of `Estimate.rows` without its name and ratio."""
    totals, limits = Counter(), Counter()
    for verb in VERBS:
        entries = 1.0 if verb == "embed" else min(wave.entries, wave.positions[verb])
        work = pass_work(shape, verb, wave.positions[verb], context, device.itemsize, entries, devices)
        for key, value in asdict(work).items():
            totals[key] += wave.calls[verb] * value
        for limit, seconds in work.seconds(device, devices).items():
            limits[limit] += wave.calls[verb] * seconds
    seconds = sum(limits.values())
    return {
        "tokens_per_second": 1 / (wave.ticks * seconds),
        "positions": wave.positions["recur"],
        "ticks_per_token": wave.ticks,
        "recurrences_per_token": wave.recurrences,
        "bytes_per_tick": totals["read"],
        "operations_per_tick": totals["operations"],
        "sent_per_tick": totals["sent"],
        "reductions_per_tick": totals["reductions"],
        "limited_by": max(limits, key=limits.__getitem__),
        "seconds_per_tick": seconds,
        "seconds_by_limit": dict(limits),
    }

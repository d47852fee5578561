"""Models the cost of ticks on machines described by a few numbers: time by width, and bytes."""

from collections.abc import Callable

import torch

from .. import RavenConfig, RavenForCausalLM
from ..generation.cost_curve import WIDTHS, CostCurve


def roofline(balance: float, core_layers: int, end_layers: int) -> CostCurve:
    """The cost curve of a machine that reads a layer in one time unit and computes `balance` positions in that time."""
    times = [max(1.0, width / balance) for width in WIDTHS]
    return CostCurve(tuple(core_layers * time for time in times), tuple(end_layers * time for time in times))


def bytes_read(config: RavenConfig, kv_readers: Callable[[int], tuple[int, int, int]]) -> Callable[[int, int], float]:
    """The bytes of weights, keys and values that a model's tick reads, in bfloat16 with batch 1.

    Args:
        config: the model's shape.
        kv_readers: for a tick of k core passes, how often a prelude, a core and a coda layer reads all keys and values
            of the context.

    Returns:
        A function from a tick's core passes and the context's length to bytes.
    """
    with torch.device("meta"):
        model = RavenForCausalLM(config)
    parts, itemsize = model.transformer, 2

    def weights(*modules: torch.nn.Module) -> int:
        return itemsize * sum(p.numel() for module in modules for p in module.parameters())

    core = weights(parts.core_block, parts.adapter)
    ends = weights(parts.prelude, parts.coda, model.lm_head)
    entry = 2 * config.num_key_value_heads * config.head_dim * itemsize
    layers = config.n_layers_in_prelude, config.n_layers_in_recurrent_block, config.n_layers_in_coda

    def tick(passes: int, context: int) -> float:
        reads = sum(count * times for count, times in zip(layers, kv_readers(passes), strict=True))
        return ends + passes * core + context * entry * reads

    return tick

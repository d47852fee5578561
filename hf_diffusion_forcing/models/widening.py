"""How a family's tensors repeat when a model is made wider without changing what it computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Widening:
    """A family's `widening`, so that `evaluation.widening.widen` can repeat its channels.

    Linear maps are tiled, everything of one dimension and embeddings are repeated, and heads keep their size.

    Attributes:
        sizes: the config's fields that grow.
        packed_outputs: parts that are stacked along the output of a map, by the end of its name, such as queries, keys
            and values.
        packed_inputs: the same along the input.
        fixed_inputs: ends of the names of maps that read the first channels alone.
    """

    sizes: tuple[str, ...]
    packed_outputs: Mapping[str, int] = field(default_factory=dict)
    packed_inputs: Mapping[str, int] = field(default_factory=dict)
    fixed_inputs: tuple[str, ...] = ()

"""The layouts of `huginn_raven` checkpoints, and how tensor names tell them apart."""

import re
from collections.abc import Iterable

LAYOUTS: dict[str, frozenset[str]] = {
    "huginn": frozenset({"norm_1", "norm_2", "norm_3", "norm_4", "qk_bias"}),
    "llama": frozenset({"norm_1", "norm_2"}),
    "olmo": frozenset({"norm_1", "norm_2", "q_norm", "k_norm"}),
}
"""By layout, the norms and biases of a block: what is multiplied (Wqkv, proj, fc) has the same names in all."""

_MARKER = re.compile(r"(?:prelude|core_block|coda)\.\d+\.(?:\w+\.)*?(norm_\d+|\w+_norm|\w+_bias)(?:\.weight)?$")


def layout_of(names: Iterable[str]) -> str:
    """The layout of a checkpoint.

    Args:
        names: of its tensors.

    Raises:
        ValueError: the blocks are those of no layout; lists what was found and what each layout has.
    """
    found = {match[1] for match in map(_MARKER.search, names) if match}
    for layout, markers in LAYOUTS.items():
        if found == markers:
            return layout
    expected = "; ".join(f"{layout}: {', '.join(sorted(markers))}" for layout, markers in LAYOUTS.items())
    raise ValueError(
        f"The checkpoint's tensors match no layout of huginn_raven. Found in its blocks: "
        f"{', '.join(sorted(found)) or 'no norms at all'}. Expected: {expected}."
    )

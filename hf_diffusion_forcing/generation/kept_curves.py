"""Measured cost curves on disk, so that a machine measures each once, and not every process anew."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import constants
from transformers.utils import logging

from ..files import write_file

logger = logging.get_logger(__name__)

Curves = dict[str, tuple[float, ...]]

PATIENCE = 120.0
"""Seconds to wait for a process that measures."""


def folder() -> Path:
    """Where the curves are: in the cache folder of Hugging Face's libraries, which `HF_HOME` names."""
    return Path(constants.HF_HOME) / "hf_diffusion_forcing" / "cost_curves"


def path_of(conditions: dict[str, Any]) -> Path:
    """The file of a curve that was measured under these conditions."""
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()
    return folder() / f"{digest[:32]}.json"


def read(conditions: dict[str, Any], names: Sequence[str], points: int) -> Curves | None:
    """The curves that were kept under these conditions.

    Args:
        conditions: JSON values; see `conditions.conditions_of`.
        names: of the curves.
        points: how many numbers each has.

    Returns:
        None if there is no file, or if it holds anything but positive numbers under exactly these conditions: then the
        curves are measured anew and replace it.
    """
    try:
        stored = json.loads(path_of(conditions).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, unreadable, or not JSON
        return None
    if not isinstance(stored, dict) or stored.get("conditions") != conditions:
        return None
    curves = {name: stored.get(name) for name in names}
    if not all(isinstance(costs, list) and len(costs) == points for costs in curves.values()):
        return None
    if not all(_is_cost(cost) for costs in curves.values() for cost in costs):
        return None
    return {name: tuple(map(float, costs)) for name, costs in curves.items()}


@contextmanager
def one_process_at_a_time(conditions: dict[str, Any]) -> Iterator[None]:
    """Make other processes wait that would measure under these conditions, and disturb this one.

    Without the lock, a warning says why, and this process measures all the same.
    """
    path = path_of(conditions).with_suffix(".lock")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path, timeout=PATIENCE))
        except (OSError, NotImplementedError) as error:  # not writable, no locks there, or PATIENCE is over
            logger.warning_once(f"Costs are measured without a lock, so other processes may disturb it: {error}")
        yield


def write(conditions: dict[str, Any], curves: Curves) -> None:
    """Keep curves. Where they cannot be written, a warning says so, and the next process measures them again."""
    path = path_of(conditions)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps({"conditions": conditions, **curves}, indent=1) + "\n")
    except OSError as error:
        logger.warning_once(
            f"Measured costs cannot be kept in {folder()}, so every process measures them again: {error}. Set HF_HOME "
            "to a folder that can be written."
        )


def _is_cost(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0

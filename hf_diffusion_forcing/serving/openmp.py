"""The threads with which torch computes on a CPU."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from pathlib import Path

SOFT = 1
"""`omp_pause_soft` of the OpenMP API."""


def release_threads() -> None:
    """End the OpenMP threads that compute for the calling thread; its next parallel operation starts new ones.

    Every thread that calls torch on a CPU gets OpenMP threads of its own and keeps them. Once all of them together are
    more than the CPUs, GNU's OpenMP, which torch brings along on Linux, lets them sleep between operations. To wake
    them takes longer than a small operation: on two CPUs, a narrow model decoded in a second thread took 1.6 times as
    long after the first one had loaded it. Nothing happens with another OpenMP.
    """
    for library in libraries():
        library.omp_pause_resource_all(SOFT)


@cache
def libraries() -> list[ctypes.CDLL]:
    """Every GNU OpenMP that is loaded and has the function."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return []
    found = []
    for path in sorted({line.split(maxsplit=5)[5] for line in lines if "libgomp" in line}):
        with suppress(OSError):  # replaced on disk since
            library = ctypes.CDLL(path)
            found += [library] if hasattr(library, "omp_pause_resource_all") else []
    return found

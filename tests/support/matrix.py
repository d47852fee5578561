"""Which cases of a parametrised test run by default."""

from collections.abc import Container, Iterable
from itertools import product
from typing import Any

import pytest


def cases(params: Iterable, keep: Container) -> list:
    """Marks all cases but the kept ones `full`: they run under `-m full` only.

    Args:
        params: the test's parameters; a tuple for several names.
        keep: those that also run by default.
    """
    return [param if param in keep else marked(param) for param in params]


def crossed(*columns: Iterable, keep: Container) -> list:
    """`cases` over every combination of the columns' values."""
    return cases(product(*columns), keep)


def marked(param: Any):
    values = param if isinstance(param, tuple) else (param,)
    return pytest.param(*values, marks=pytest.mark.full)

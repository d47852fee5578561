"""Checks of settings; their errors name the setting, the value and what is allowed."""

import difflib
import math
from typing import Any


def check_integer(name: str, value: Any, at_least: int) -> None:
    """TypeError unless it is an int, ValueError below `at_least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an int.")
    if value < at_least:
        raise ValueError(f"{name}={value} must be at least {at_least}.")


def check_number(name: str, value: Any, at_most: float = math.inf) -> None:
    """TypeError unless it is a number, ValueError if negative, above `at_most`, infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r} must be a number.")
    if not 0 <= value <= at_most or math.isinf(value):
        bound = "0 or more" if at_most == math.inf else f"between 0 and {at_most:g}"
        raise ValueError(f"{name}={value} must be {bound}.")


def check_flag(name: str, value: Any) -> None:
    """TypeError unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False.")


def nearest(word: str, known: tuple[str, ...] | list[str] | set[str]) -> str:
    """A hint for the end of an error: the closest known word, or all of them if none is close."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"

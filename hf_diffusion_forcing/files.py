"""Files that are written as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Where to write a file that takes its place when all of it is there."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    partial.replace(path)


def write_file(path: str | os.PathLike, text: str) -> None:
    """Write a text file as a whole."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")

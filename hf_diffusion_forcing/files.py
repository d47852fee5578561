"""Files that are written as a whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """Where to write a file that takes its place when all of it is there.

    Each process has its own, so processes that write the same file do not disturb each other: the last one counts.
    """
    path = Path(path)
    partial = _partial(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_file(path: str | os.PathLike, text: str) -> None:
    """Write a text file as a whole."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_writable_file(path: str | os.PathLike) -> Path:
    """The absolute path of a file that can be written.

    Raises:
        ValueError: the path is a folder, or its parent folder does not exist.
        OSError: the folder is not writable.
    """
    path = Path(path).expanduser().resolve()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it.")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}. Create it first.")
    partial = _partial(path)
    partial.touch()
    partial.unlink()
    return path


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.partial")
